"""What a model's cache takes, by the rules of the cache classes."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ..cache import ConvCache, KVCache, RotatingKVCache
from ..models import AfmoeConfig, Lfm2MoeConfig, ModelConfig


@dataclass(frozen=True)
class LayerCaches:
    """The caches of all layers of one kind."""

    layers: int
    held: int
    """Bytes of their buffers, at most."""
    read: int
    """Bytes that one more token reads of them."""


def layer_caches(config: ModelConfig, context: int, dtype: mx.Dtype) -> dict[str, LayerCaches]:
    """The caches of one sequence of `context` tokens, by the kind of layer as the config calls it."""
    result = {}
    for kind in dict.fromkeys(config.layer_types):
        layers = config.layer_types.count(kind)
        held, read = _columns(_CACHES[kind](config), context)
        values = config.hidden_size if kind == "conv" else 2 * config.num_key_value_heads * config.head_dim
        column = layers * values * dtype.size
        result[kind] = LayerCaches(layers, held * column, read * column)
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
    held = -(-context // cache.step) * cache.step
    if isinstance(cache, RotatingKVCache):
        return min(held, cache.history + cache.slack), min(context, cache.history + 1)
    return held, context
