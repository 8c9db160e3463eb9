"""Caches: what a model remembers of the tokens it has seen, and how far it can step back."""

from .buffers import ConvCache, KVCache, RotatingKVCache
from .cache import Cache

__all__ = ["Cache", "ConvCache", "KVCache", "RotatingKVCache"]
