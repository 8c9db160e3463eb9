"""OpenAI's interface: chat completions, completions and models."""

from .chat import CHAT
from .completions import COMPLETIONS
from .errors import error_body
from .models import model, models

__all__ = ["ENDPOINTS", "error_body", "model", "models"]

ENDPOINTS = [CHAT, COMPLETIONS]
