"""Caches: what a model remembers of the tokens it has seen, and how far it can step back."""

from .buffers import DEFAULT_SLACK, ConvCache, KVCache, RotatingKVCache
from .cache import Cache

__all__ = ["DEFAULT_SLACK", "Cache", "ConvCache", "KVCache", "RotatingKVCache"]
