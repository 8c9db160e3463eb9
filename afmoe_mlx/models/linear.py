"""Linear maps and experts whose quantized form multiplies in the way that is fastest for its number of rows."""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..device import dequantizes, has_fast_blas

# The largest weight of nvfp4 (6) times its largest scale (448): what a global scale stands for.
NVFP4_LARGEST = 6 * 448

# Weights that are dequantized at a time, so that a large head needs no second copy of itself.
PIECE = 1 << 24

Quantization = tuple[int, int, str]  # group size, bits and mode


class Adapted:
    """What a linear map has besides its arrays while an adapter of it is trained, see `adapted`."""

    lora_scale = 1.0
    lora_dropout = 0.0


class Linear(Adapted, nn.Linear):
    """`nn.Linear`, but for its quantized form. With `lora_a` it is adapted, see `adapted`."""

    def __call__(self, x: mx.array) -> mx.array:
        if "lora_a" in self:
            return adapted(x @ self.weight.T, x, self)
        return super().__call__(x)

    def to_quantized(self, *args: Any, **kwargs: Any) -> nn.Module:
        return QuantizedLinear.from_linear(self, *args, **kwargs)


class QuantizedLinear(Adapted, nn.QuantizedLinear):
    """`nn.QuantizedLinear`, by `quantized_product`; nvfp4 may have one more scale for each output, (out,)."""

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        group_size: int = 64,
        bits: int = 4,
        mode: str = "affine",
        global_scale: bool = False,
    ) -> "QuantizedLinear":
        made = super().from_linear(linear, group_size, bits, mode)
        if global_scale:
            largest = mx.abs(linear.weight).max().astype(mx.float32)
            parts = mx.quantize(linear.weight, group_size, bits, mode=mode, global_scale=largest)
            made.weight, made.scales = parts[:2]
            made.global_scale = mx.broadcast_to(largest, linear.weight.shape[:1])
            made.freeze()
        return made

    def __call__(self, x: mx.array) -> mx.array:
        if "global_scale" in self:  # the kernels take none; without it, float16 has too small a range
            wide = x.astype(mx.float32) if x.dtype == mx.float16 else x
            y = (quantized_product(wide, self) * (self.global_scale / NVFP4_LARGEST)).astype(x.dtype)
        else:
            y = quantized_product(x, self)
        if "lora_a" in self:
            return adapted(y, x, self)
        return y + self.bias if "bias" in self else y


class Embedding(nn.Embedding):
    """`nn.Embedding`, but for its quantized form."""

    def to_quantized(self, *args: Any, **kwargs: Any) -> nn.Module:
        return QuantizedEmbedding.from_embedding(self, *args, **kwargs)


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """`nn.QuantizedEmbedding`, as a head by `quantized_product`; scales and biases may differ in dtype."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(self.scales.dtype) if "biases" in self else super().__call__(x)

    def as_linear(self, x: mx.array) -> mx.array:
        return quantized_product(x, self)


def adapted(y: mx.array, x: mx.array, module: nn.Module) -> mx.array:
    """What a map's adapter makes of y = x W (..., out), and its bias after it.

    lora_a (in, r) and lora_b (r, out): a change of low rank, whose scale is in lora_b. lora_m (out,): DoRA's, what each
    output is multiplied by. In training they are in float32, the scale is `lora_scale`, `lora_dropout` is the share of
    x that is left out, and DoRA's m (out,) are the lengths that the changed weight's rows are to have.
    """
    a, b = module.lora_a.astype(x.dtype), module.lora_b.astype(x.dtype)
    y = mx.addmm(y, dropped(x, module) @ a, b, alpha=module.lora_scale)
    if "lora_m" in module:
        y = y * module.lora_m
    elif "m" in module:
        y = y * (module.m / changed_lengths(module)).astype(y.dtype)
    return y + module.bias if "bias" in module else y


def dropped(x: mx.array, module: nn.Module) -> mx.array:
    """What an adapter takes of x: in training a share of it is left out, and the rest made up for it."""
    if not (module.training and module.lora_dropout):
        return x
    kept = 1 - module.lora_dropout
    return mx.where(mx.random.bernoulli(kept, x.shape), x / kept, 0).astype(x.dtype)


def changed_lengths(module: nn.Module) -> mx.array:
    """The lengths (out,) of the rows of a map's weight and its change together, of which DoRA takes no gradient."""
    change = module.lora_scale * (module.lora_a @ module.lora_b).T
    return mx.stop_gradient(mx.linalg.norm(plain_weight(module).astype(mx.float32) + change, axis=1))


def plain_weight(module: nn.Module) -> mx.array:
    """A map's weight (out, in), or those of all experts (E, out, in), dequantized if need be."""
    if "scales" not in module:
        return module.weight
    arrays = module.weight, module.scales, module.get("biases")
    return mx.dequantize(*arrays, module.group_size, module.bits, module.mode)


def quantized_product(x: mx.array, module: nn.Module, expert: int | None = None) -> mx.array:
    """x (..., in) times the transposed quantized weight (out, in) of a module, or of one of its experts, in x's dtype.

    A global scale is left out.
    """
    arrays = [module.weight, module.scales, *([module.biases] if "biases" in module else [])]
    if expert is not None:
        arrays = [array[expert] for array in arrays]
    how = module.group_size, module.bits, module.mode
    if dequantizes(x.size // x.shape[-1]):
        return training_product(x, arrays, how) if module.training else dequantized_product(x, arrays, how)
    weight, scales, *biases = arrays
    return mx.quantized_matmul(x, weight, scales, biases[0] if biases else None, True, *how).astype(x.dtype)


def dequantized_product(x: mx.array, arrays: Sequence[mx.array], how: Quantization) -> mx.array:
    """x (..., in) times the transposed weight (out, in) of packed codes, scales and, if it has any, biases."""
    parts = [_product(x, part) for _, part in _dequantized(arrays, how, x.dtype)]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def training_product(x: mx.array, arrays: Sequence[mx.array], how: Quantization) -> mx.array:
    """The same, whose gradient dequantizes once more: else all weights of a model would be kept for it."""
    codes, *floats = arrays

    @mx.custom_function
    def product(x: mx.array, *floats: mx.array) -> mx.array:
        return dequantized_product(x, [codes, *floats], how)

    @product.vjp
    def gradients(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> list[mx.array]:
        x, *floats = primals
        arrays = [*mx.depends([codes], [cotangent]), *floats]  # or what is dequantized may be shared, and so kept
        parts = [cotangent[..., rows] @ part for rows, part in _dequantized(arrays, how, x.dtype)]
        return [reduce(mx.add, parts), *_gradients_of_floats(x, cotangent, arrays, how)]

    y: mx.array = product(x, *floats)  # type: ignore[assignment]
    return y


def _dequantized(arrays: Sequence[mx.array], how: Quantization, dtype: mx.Dtype) -> Iterator[tuple[slice, mx.array]]:
    """A weight (out, in) a piece at a time: which rows, and the rows."""
    outputs = max(PIECE // (arrays[0].shape[1] * 32 // how[1]), 1)
    for start in range(0, arrays[0].shape[0], outputs):
        rows = slice(start, start + outputs)
        codes, scales, *biases = (array[rows] for array in arrays)
        yield rows, mx.dequantize(codes, scales, biases[0] if biases else None, *how, dtype=dtype)


def _gradients_of_floats(
    x: mx.array, cotangent: mx.array, arrays: Sequence[mx.array], how: Quantization
) -> list[mx.array]:
    """Of scales and biases (out, groups), evaluated only where they are learned; other modes' scales cannot be."""
    codes, scales, *biases = arrays
    if not biases:
        return [mx.zeros_like(scales)]
    of_weight = cotangent.reshape(-1, cotangent.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    of_weight = of_weight.reshape(*scales.shape, -1)
    plain = mx.dequantize(codes, mx.ones_like(scales), mx.zeros_like(scales), *how).reshape(of_weight.shape)
    return [part.sum(axis=-1).astype(scales.dtype) for part in (of_weight * plain, of_weight)]


def _product(x: mx.array, weight: mx.array) -> mx.array:
    """x (..., in) times the transposed weight (out, in)."""
    if has_fast_blas():
        return x @ weight.T
    # the reference BLAS takes dot products of rows at less than half the speed at which it adds up columns
    columns = mx.contiguous(x.reshape(-1, x.shape[-1]).T)
    return (weight @ columns).T.reshape(*x.shape[:-1], -1)
