"""Linear maps and experts whose quantized form multiplies in the way that is fastest for its number of rows."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..device import dequantizes, has_fast_blas

# Weights that are dequantized at a time, so that a large head needs no second copy of itself.
PIECE = 1 << 24


class Linear(nn.Linear):
    """`nn.Linear`, but for its quantized form."""

    def to_quantized(self, *args: Any, **kwargs: Any) -> nn.Module:
        return QuantizedLinear.from_linear(self, *args, **kwargs)


class QuantizedLinear(nn.QuantizedLinear):
    """`nn.QuantizedLinear`, by `quantized_product`."""

    def __call__(self, x: mx.array) -> mx.array:
        y = quantized_product(x, self)
        return y + self.bias if "bias" in self else y


class Embedding(nn.Embedding):
    """`nn.Embedding`, but for its quantized form."""

    def to_quantized(self, *args: Any, **kwargs: Any) -> nn.Module:
        return QuantizedEmbedding.from_embedding(self, *args, **kwargs)


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """`nn.QuantizedEmbedding`, as a head by `quantized_product`."""

    def as_linear(self, x: mx.array) -> mx.array:
        return quantized_product(x, self)


def quantized_product(x: mx.array, module: nn.Module, expert: int | None = None) -> mx.array:
    """x (..., in) times the transposed quantized weight (out, in) of a module, or of one of its experts."""
    weight, scales, biases = module.weight, module.scales, module.get("biases")
    if expert is not None:
        weight, scales, biases = weight[expert], scales[expert], None if biases is None else biases[expert]
    size, bits, mode = module.group_size, module.bits, module.mode
    if module.training or not dequantizes(x.size // x.shape[-1]):
        return mx.quantized_matmul(x, weight, scales, biases, True, size, bits, mode)
    outputs = max(PIECE // x.shape[-1], 1)
    parts = []
    for start in range(0, weight.shape[0], outputs):
        rows = slice(start, start + outputs)
        part = mx.dequantize(
            weight[rows], scales[rows], None if biases is None else biases[rows], size, bits, mode, dtype=x.dtype
        )
        parts.append(_product(x, part))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def _product(x: mx.array, weight: mx.array) -> mx.array:
    """x (..., in) times the transposed weight (out, in)."""
    if has_fast_blas():
        return x @ weight.T
    # the reference BLAS takes dot products of rows at less than half the speed at which it adds up columns
    columns = mx.contiguous(x.reshape(-1, x.shape[-1]).T)
    return (weight @ columns).T.reshape(*x.shape[:-1], -1)
