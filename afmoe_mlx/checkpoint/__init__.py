"""Checkpoints: a Hub id, a short name or a folder becomes a model in memory, and goes back to disk."""

from .hub import resolve
from .load import load_model, open_model

__all__ = ["load_model", "open_model", "resolve"]
