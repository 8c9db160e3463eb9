"""KV caches and the prefix cache: what a model keeps of the tokens it has seen, and how far it can step back."""

from .buffers import DEFAULT_SLACK, ROW_SLACK, ConvCache, KVCache, RotatingKVCache
from .cache import Cache
from .disk import default_directory
from .elsewhere import Elsewhere
from .quantized import KVQuantization, QuantizedArray, QuantizedKVCache, check_kv_quantization
from .rows import Row, regroup, row_kind, row_lengths, row_of
from .saved import SavedCache, load_cache, save_cache, shared_prefix
from .store import PrefixStore

__all__ = [
    "DEFAULT_SLACK",
    "ROW_SLACK",
    "Cache",
    "ConvCache",
    "Elsewhere",
    "KVCache",
    "KVQuantization",
    "PrefixStore",
    "QuantizedArray",
    "QuantizedKVCache",
    "RotatingKVCache",
    "Row",
    "SavedCache",
    "check_kv_quantization",
    "default_directory",
    "load_cache",
    "regroup",
    "row_kind",
    "row_lengths",
    "row_of",
    "save_cache",
    "shared_prefix",
]
