"""The terminal chat, installed as afmoe_mlx.chat."""

from .app import run
from .conversation.conversation import Conversation
from .conversation.engine import EngineSource
from .loop import Chat, View

__all__ = ["Chat", "Conversation", "EngineSource", "View", "run"]
