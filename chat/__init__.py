"""The terminal chat, installed as afmoe_mlx.chat."""

from .app import Chat, run
from .conversation import Conversation

__all__ = ["Chat", "Conversation", "run"]
