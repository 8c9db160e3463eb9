"""What a model is made of, and which of it is here: layers, their caches, their dtype."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..cache import DEFAULT_SLACK, Cache, KVCache, KVQuantization, QuantizedKVCache, check_kv_quantization
from ..errors import CacheError, InputError
from .beyond import Beyond
from .config import ModelConfig
from .decode import DecodeStep
from .pool import ExpertPool, ExpertReads
from .streamed import pool_of


class Backbone(nn.Module):
    """What a model has beneath its head, by the checkpoint's names: `embed_tokens`, `layers`, the final norm."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: positions and masks are the whole model's to know."""
        raise InputError("model.model cannot be called here: ours is model.last_hidden_state(input_ids, cache)")


class LayeredModel(nn.Module):
    """Layers of a model, all or a part of them; `model` has them and what stands around them."""

    kv_quantization: KVQuantization | None
    """How the caches made from now on keep the keys and values of full-attention layers; None for as they are.

    Sliding layers' are bounded and stay as they are.
    """
    reads_experts: bool
    """Whether some layers read their experts when they are chosen. Such a model is for one sequence at a time."""
    expert_reads: ExpertReads
    """What was read of them."""
    part: range
    """Which of the config's layers are here, all of them unless `keep_part` was called."""
    beyond: Beyond | None
    """The layers after those, in other processes. Such a model is for one sequence at a time."""
    recomputes: bool
    """Whether what a layer computes is computed again for its gradient, rather than kept: less memory, more time."""

    def __init__(self, config: ModelConfig, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.dtype = mx.float32
        self.model = model
        self.kv_quantization: KVQuantization | None = None
        self.reads_experts = False
        self.expert_reads = ExpertReads()
        self.part = range(config.num_hidden_layers)
        self.beyond: Beyond | None = None
        self.recomputes = False
        self._decode_step: DecodeStep | None = None

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, from the first to the last."""
        layers: list[nn.Module] = self.model.layers
        return layers

    @property
    def expert_pools(self) -> list[ExpertPool]:
        """Of the layers that read their experts, in order."""
        return [pool for layer in self.layers if (pool := pool_of(layer)) is not None]

    def make_cache(self, slack: int | None = None, *, kv_quantization: KVQuantization | None = None) -> Cache:
        """An empty cache for one batch; `slack // 2` tokens can be taken back once a window has wrapped (512).

        kv_quantization: in place of the model's own. InputError if its heads cannot be quantized as asked.
        """
        kept = kv_quantization or self.kv_quantization
        check_kv_quantization(kept)
        room = DEFAULT_SLACK if slack is None else slack
        layers = [self.layer_cache(self.config.layer_types[i], room, kept) for i in self.part]
        return Cache(layers) if self.beyond is None else self.beyond.make_cache(layers, slack, kept)

    def layer_cache(self, kind: str, slack: int, kv_quantization: KVQuantization | None) -> KVCache:
        """An empty cache for a layer of the config's `layer_types`."""
        raise NotImplementedError

    def check_cache(self, cache: Cache) -> None:
        """CacheError for a cache that is not of this model."""
        if not isinstance(cache, Cache):
            raise CacheError(f"the cache is a {type(cache).__name__}: expected what model.make_cache() returns")
        if len(cache.layers) != len(self.layers):
            found = f"the cache has {len(cache.layers)} layers, the model {len(self.layers)}"
            raise CacheError(f"{found}: use one of this model's make_cache()")
        if self.beyond is not None:
            self.beyond.check(cache)

    @property
    def takes_batches(self) -> bool:
        """Whether several sequences may be under way at once, each with a cache of its own."""
        return not self.reads_experts and self.beyond is None

    def keep_part(self, part: range) -> None:
        """Drop all layers but these, and, of a part that is not the first, what stands around the layers.

        What is dropped must not have been evaluated, or it has been in memory.
        """
        self.model.layers = [self.model.layers[i] for i in part]
        self.part = part
        if part.start:
            for name in ("embed_tokens", "norm", "embedding_norm"):
                self.model.pop(name, None)
            self.pop("lm_head", None)
        self.drop_compiled()

    def full_cache(self, kv_quantization: KVQuantization | None) -> KVCache:
        """An empty cache for a full-attention layer, see `make_cache`."""
        if kv_quantization is None:
            return KVCache()
        return QuantizedKVCache(kv_quantization.of_heads(self.config.head_dim))

    def set_dtype(self, dtype: mx.Dtype, *args: Any, **kwargs: Any) -> None:
        """Cast the floating weights, but those that stay in float32, and compute in `dtype` from now on.

        InputError where layers are beyond, which would go on in theirs.
        """
        if self.beyond is not None:
            raise InputError("a model on several hosts keeps its dtype: give it to `load`")
        kept = {name: a for name, a in dict(tree_flatten(self.parameters())).items() if self.config.is_float32(name)}
        super().set_dtype(dtype, *args, **kwargs)
        self.update(tree_unflatten([(name, a.astype(mx.float32)) for name, a in kept.items()]))
        self.dtype = dtype
        self.drop_compiled()

    def drop_compiled(self) -> None:
        """Compile anew at the next step: needed after a number of a module has been changed, such as a LoRA's scale."""
        self._decode_step = None
