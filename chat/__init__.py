"""The terminal chat, installed as afmoe_mlx.chat."""

from .app import run
from .conversation import Conversation

__all__ = ["Conversation", "run"]
