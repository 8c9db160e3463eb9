"""The memory that a model and its cache need on a device, and the bytes that decoding one token reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import mlx.core as mx

from .. import device
from ..cache import KVQuantization
from ..checkpoint.files import stored_dtype
from ..models import ModelConfig
from .cache import LayerCaches, layer_caches
from .experts import ExpertMemory
from .weights import Headers, Weights, converted_weights, stored_weights

# Of adapters: in memory, and read by one decoded token at batch 1; and what tells these of adapters beside a config's
# model that computes in a dtype.
AdapterBytes = tuple[int, int]
CountAdapters = Callable[[ModelConfig, mx.Dtype], AdapterBytes]


@dataclass(frozen=True)
class Footprint:
    """One model, computing in `dtype`, with a cache of `context` tokens in each of `rows`. Sizes are in bytes.

    Keys and values are kept as they are unless `with_kv` says otherwise.
    """

    dtype: mx.Dtype
    context: int
    weights: Weights
    caches: Mapping[str, LayerCaches]
    """By kind of layer, of one row."""
    rows: int = 1
    kv_quantization: KVQuantization | None = None
    experts: ExpertMemory | None = None
    """Which experts are in memory, as `with_experts` says; None for all."""
    adapters: AdapterBytes = (0, 0)
    """Beside the weights."""

    @classmethod
    def of_checkpoint(
        cls,
        config: ModelConfig,
        headers: Headers,
        *,
        context: int,
        dtype: mx.Dtype | None = None,
        adapters: CountAdapters | None = None,
    ) -> Self:
        """A checkpoint as `load` would load it here: in `dtype`, by default as stored, or float32 on the CPU."""
        dtype = dtype or device.compute_dtype(stored_dtype(headers))
        beside = (0, 0) if adapters is None else adapters(config, dtype)
        weights, caches = stored_weights(config, headers, dtype), layer_caches(config, context, dtype)
        return cls(dtype, context, weights, caches, adapters=beside)

    @classmethod
    def of_conversion(
        cls, config: ModelConfig, *, bits: int | None, context: int, dtype: mx.Dtype = mx.bfloat16
    ) -> Self:
        """A config's model as our converter would quantize it, in groups of 64, or not with bits None."""
        weights = converted_weights(config, dtype, bits=bits)
        return cls(dtype, context, weights, layer_caches(config, context, dtype))

    def with_kv(self, config: ModelConfig, kv_quantization: KVQuantization | None) -> Self:
        """The same with keys and values of full-attention layers kept so; InputError if the heads do not allow it."""
        caches = layer_caches(config, self.context, self.dtype, kv_quantization)
        return replace(self, caches=caches, kv_quantization=kv_quantization)

    def with_experts(self, experts: ExpertMemory) -> Self:
        """The same with these experts in memory, where all were before."""
        held = self.weights.held - experts.total + experts.resident
        return replace(self, weights=replace(self.weights, held=held), experts=experts)

    @property
    def cache_bytes(self) -> int:
        return self.rows * sum(caches.held for caches in self.caches.values())

    @property
    def workspace(self) -> int:
        """To work in: a step of the prompt under way. A small model needs less, no more than its own size."""
        return min(device.PREFILL_ROOM, self.weights.held)

    @property
    def optional_workspace(self) -> int:
        """What a larger step through a prompt works in besides, where this device takes it while that much is free."""
        return min(device.extra_prefill_room(), self.weights.held)

    @property
    def needed(self) -> int:
        """Weights, adapters, cache and workspace: what there must be."""
        return self.weights.held + self.adapters[0] + self.cache_bytes + self.workspace

    @property
    def bytes_per_token(self) -> int:
        """What decoding one token at batch 1 reads: weights and adapters it takes part in, and the cache."""
        return self.weights.read + self.adapters[1] + sum(caches.read for caches in self.caches.values())

    def tokens_per_second(self, bandwidth: float) -> float:
        """The highest decode speed with memory that gives `bandwidth` bytes a second, all experts being there."""
        return bandwidth / self.bytes_per_token

    def streamed_tokens_per_second(self, bandwidth: float, ssd: float) -> float:
        """The decode speed to expect where experts are read from an SSD that gives `ssd` bytes a second."""
        if self.experts is None:
            return self.tokens_per_second(bandwidth)
        return 1 / self.seconds_per_token(bandwidth, ssd)

    def seconds_per_token(self, bandwidth: float, ssd: float) -> float:
        """What a token takes at that speed."""
        reading = 0.0 if self.experts is None else self.experts.seconds_per_token(ssd)
        return self.bytes_per_token / bandwidth + reading
