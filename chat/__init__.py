"""The terminal chat, installed as afmoe_mlx.chat."""

from .app import Request, run
from .conversation import Conversation
from .engine import EngineSource
from .loop import Chat, View

__all__ = ["Chat", "Conversation", "EngineSource", "Request", "View", "run"]
