"""A KV cache quantized to a few bits, for full-attention layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from ..errors import InputError
from .buffers import Arrays, KVCache

# What MLX has kernels for: bits of a number, and how many numbers may share a scale.
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)

# Arrays of a cache that is not quantized: keys and values. Quantized, each is three.
PLAIN = 2


@dataclass(frozen=True)
class KVQuantization:
    """The quantization of full-attention layers' keys and values, in groups of `group_size` along head_dim.

    Raises InputError for what MLX has no kernel for.
    """

    bits: int
    group_size: int | None = None
    """None: 64, or 32 for heads that are no multiple of 64."""
    start: int = 0
    """Tokens that a conversation may have before all of it is quantized."""

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("kv_bits", self.bits, BITS),
            ("kv_group_size", 64 if self.group_size is None else self.group_size, GROUP_SIZES),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value not in accepted:
                raise InputError(f"{name} is {value!r}: expected one of {', '.join(map(str, accepted))}")
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise InputError(f"quantized_kv_start is {self.start!r}: expected an integer, 0 or more")

    def of_heads(self, head_dim: int) -> "KVQuantization":
        """The same with a group size for heads of `head_dim` numbers; InputError if they have no whole groups."""
        group_size = self.group_size or (32 if head_dim % 64 else 64)
        if head_dim % group_size:
            fitting = [size for size in reversed(GROUP_SIZES) if head_dim % size == 0]
            hint = f"expected {fitting[0]}" if fitting else "such keys cannot be quantized"
            raise InputError(f"kv_group_size is {group_size}, heads have {head_dim} dimensions: {hint}")
        return replace(self, group_size=group_size)

    def head_bytes(self, head_dim: int, dtype: mx.Dtype) -> int:
        """Bytes of one head's keys, or values, at one position: codes, and a scale and a bias in `dtype` a group."""
        group_size = self.of_heads(head_dim).group_size
        assert group_size is not None
        return head_dim * self.bits // 8 + head_dim // group_size * 2 * dtype.size


def check_kv_quantization(quantization: object) -> None:
    """InputError for what is neither a KVQuantization nor None."""
    if quantization is not None and not isinstance(quantization, KVQuantization):
        raise InputError(f"kv_quantization is {quantization!r}: expected a KVQuantization or None")


@dataclass(frozen=True)
class QuantizedArray:
    """A quantized array (B, K, N, head_dim): the codes, scales and biases of `mx.quantize`."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    quantization: KVQuantization

    @property
    def arrays(self) -> Arrays:
        return self.weight, self.scales, self.biases

    def dequantized(self) -> mx.array:
        size, bits = self.quantization.group_size, self.quantization.bits
        return mx.dequantize(self.weight, self.scales, self.biases, size, bits)


class QuantizedKVCache(KVCache):
    """A KVCache that quantizes what it keeps, from `quantization.start` tokens on; until then it is a plain one.

    Then all of it is quantized, so that no step leads back exactly to where it was not.
    """

    layout = (4,) * 3 * PLAIN

    def __init__(self, quantization: KVQuantization) -> None:
        super().__init__()
        self.quantization = quantization

    def update(self, *new: mx.array) -> tuple[Any, ...]:
        """As KVCache; once quantized, keys and values are returned as QuantizedArray each."""
        if not self._is_quantized:
            if self.offset + new[0].shape[-2] <= self.quantization.start:
                return super().update(*new)
            if self.arrays:
                self.arrays = self._quantized(self.arrays)
        k, k_scales, k_biases, v, v_scales, v_biases = super().update(*self._quantized(new))
        keys = QuantizedArray(k, k_scales, k_biases, self.quantization)
        return keys, QuantizedArray(v, v_scales, v_biases, self.quantization)

    def accepts(self, layout: tuple[int, ...]) -> bool:
        """As KVCache; arrays may be from before the quantization began."""
        return layout in (self.layout, KVCache.layout)

    @property
    def rewindable(self) -> int:
        return self.rewindable_after(0)

    def rewindable_after(self, length: int) -> int:
        end, start = self.offset + length, self.quantization.start
        return end if start == 0 or end <= start else end - start - 1

    def fill(self, parts: Sequence[Arrays], end: int) -> None:
        """As KVCache; parts may have been kept before and after the quantization began."""
        if end > self.quantization.start:
            parts = [part if len(part) > PLAIN else self._quantized(part) for part in parts]
        super().fill(self.alike(parts), end)

    def alike(self, parts: Sequence[Arrays]) -> Sequence[Arrays]:
        """As KVCache; quantized, if one of them is."""
        if not any(len(part) > PLAIN for part in parts):
            return parts
        return [part if len(part) > PLAIN else self._quantized(part) for part in parts]

    @property
    def _is_quantized(self) -> bool:
        return len(self.arrays) > PLAIN

    def _quantized(self, arrays: Arrays) -> Arrays:
        size, bits = self.quantization.group_size, self.quantization.bits
        return tuple(part for array in arrays for part in mx.quantize(array, size, bits))
