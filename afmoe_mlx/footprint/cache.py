"""Bytes of a model's KV cache for a context, by the rules of the cache classes."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ..cache import ConvCache, KVCache, KVQuantization, RotatingKVCache
from ..models import AfmoeConfig, Lfm2MoeConfig, ModelConfig


@dataclass(frozen=True)
class LayerCaches:
    """The caches of all layers of one kind."""

    layers: int
    held: int
    """Bytes of their buffers, at most."""
    read: int
    """Bytes that one more token reads of them."""


def layer_caches(
    config: ModelConfig, context: int, dtype: mx.Dtype, kv_quantization: KVQuantization | None = None
) -> dict[str, LayerCaches]:
    """The caches of one sequence of `context` tokens, by the kind of layer as the config calls it.

    kv_quantization: how full-attention layers keep theirs; InputError if it does not fit the config's heads.
    """
    result = {}
    for kind in dict.fromkeys(config.layer_types):
        layers, cache = config.layer_types.count(kind), _CACHES[kind](config)
        held, read = _columns(cache, context)
        values = config.hidden_size if kind == "conv" else 2 * config.num_key_value_heads * config.head_dim
        column = values * dtype.size
        most = held * column
        if kind == "full_attention" and kv_quantization is not None and context > kv_quantization.start:
            plain = _columns(cache, kv_quantization.start)[0] * column  # until it begins
            column = 2 * config.num_key_value_heads * kv_quantization.head_bytes(config.head_dim, dtype)
            most = max(plain, held * column)
        result[kind] = LayerCaches(layers, layers * most, layers * read * column)
    return result


def _sliding(config: ModelConfig) -> KVCache:
    assert isinstance(config, AfmoeConfig)
    assert config.sliding_window is not None
    return RotatingKVCache(config.sliding_window - 1)


def _conv(config: ModelConfig) -> KVCache:
    assert isinstance(config, Lfm2MoeConfig)
    return ConvCache(config.conv_L_cache)


_CACHES: dict[str, Callable[[ModelConfig], KVCache]] = {
    "full_attention": lambda config: KVCache(),
    "sliding_attention": _sliding,
    "conv": _conv,
}


def _columns(cache: KVCache, context: int) -> tuple[int, int]:
    """Columns that a layer's cache holds after `context` tokens, and those that attention reads of them."""
    read = min(context, cache.history + 1) if isinstance(cache, RotatingKVCache) else context
    return cache.capacity(context), read
