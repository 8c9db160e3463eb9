"""OpenAI's interface: chat completions, completions and models."""

from .chat import CHAT
from .completions import COMPLETIONS
from .errors import error_body
from .models import MODEL, MODELS

__all__ = ["ENDPOINTS", "error_body"]

ENDPOINTS = [CHAT, COMPLETIONS, MODELS, MODEL]
