"""Scales and offsets of quantization groups, chosen for the least weighted error.

`mx.quantize` takes a group's extremes for the ends of its grid. Here the ends move inwards step by step, each grid is
fitted to the weights by least squares, and of all that were seen the one with the least error is kept: that of
`mx.quantize` is among them, so that the error is never above its own.
"""

from dataclasses import dataclass

import mlx.core as mx

from .packing import pack

# Grids tried: how far the narrowest one reaches of the way from a group's middle to its ends, and how many there are.
NARROWEST, STEPS = 0.6, 8
# Fits of each grid to the weights, each after rounding to the one before it.
FITS = 2
# A channel that no input used counts this much of the mean.
LEAST_IMPORTANCE = 1e-6


@dataclass(frozen=True)
class Grid:
    """The values of codes, `scales * code + biases`: both (…, 1) float32, exact in the dtype they are stored in."""

    scales: mx.array
    biases: mx.array
    bits: int

    def codes(self, weight: mx.array) -> mx.array:
        """The nearest codes (…, n) as float32."""
        steps = (weight - self.biases) / mx.where(self.scales == 0, 1, self.scales)
        return mx.clip(mx.round(steps), 0, 2**self.bits - 1)

    def values(self, codes: mx.array) -> mx.array:
        return self.scales * codes + self.biases


@dataclass(frozen=True)
class Quantized:
    """A weight (…, out, in) as it is stored: `mx.quantize`'s three arrays, of affine mode."""

    weight: mx.array
    scales: mx.array
    biases: mx.array

    @classmethod
    def from_codes(cls, codes: mx.array, scales: mx.array, biases: mx.array, bits: int, dtype: mx.Dtype) -> "Quantized":
        """codes (…, out, in) float32, scales and biases (…, out, groups)."""
        return cls(pack(codes.astype(mx.uint8), bits), scales.astype(dtype), biases.astype(dtype))


def quantize_weighted(
    weight: mx.array, importance: mx.array | None, *, group_size: int, bits: int, dtype: mx.Dtype
) -> Quantized:
    """Quantize a weight (…, out, in) float32 so that the error of each group, weighted by its inputs, is least.

    importance: (…, in), the mean squares of the input channels, None for all alike. dtype: of scales and biases.
    """
    groups = (weight.shape[-1] // group_size, group_size)
    grouped = weight.reshape(*weight.shape[:-1], *groups)
    if importance is not None:
        importance = importance.reshape(*importance.shape[:-1], 1, *groups)
    grid = best_grid(grouped, importance, bits=bits, dtype=dtype)
    codes = grid.codes(grouped).reshape(weight.shape)
    return Quantized.from_codes(codes, grid.scales[..., 0], grid.biases[..., 0], bits, dtype)


def best_grid(weight: mx.array, importance: mx.array | None, *, bits: int, dtype: mx.Dtype) -> Grid:
    """The grid of each group of a weight (…, n) float32 with the least error Σ importance · (weight - value)²."""
    if importance is None:
        importance = mx.ones_like(weight)
    importance = importance / mx.maximum(importance.mean(axis=-1, keepdims=True), 1e-30) + LEAST_IMPORTANCE
    importance = mx.broadcast_to(importance, weight.shape)
    grid = _plain_grid(weight, bits, dtype)
    error = _error(weight, importance, grid)
    high, low = weight.max(axis=-1, keepdims=True), weight.min(axis=-1, keepdims=True)
    middle = (high + low) / 2
    for step in range(STEPS):
        reach = 1 - (1 - NARROWEST) * step / (STEPS - 1)
        width = mx.maximum((high - low) * reach, 1e-7)
        tried = Grid(width / (2**bits - 1), middle - width / 2, bits)
        for _ in range(FITS):
            tried = _fitted(weight, importance, tried, dtype)
            found = _error(weight, importance, tried)
            is_better = found < error
            error = mx.where(is_better, found, error)
            scales = mx.where(is_better, tried.scales, grid.scales)
            grid = Grid(scales, mx.where(is_better, tried.biases, grid.biases), bits)
        mx.eval(error, grid.scales, grid.biases)  # what a step needs is dropped before the next
    return grid


def _plain_grid(weight: mx.array, bits: int, dtype: mx.Dtype) -> Grid:
    """That of `mx.quantize`: from one extreme to the other, the larger one and zero met exactly."""
    high, low = weight.max(axis=-1, keepdims=True), weight.min(axis=-1, keepdims=True)
    is_low = mx.abs(low) > mx.abs(high)
    scales = mx.maximum((high - low) / (2**bits - 1), 1e-7)
    scales = mx.where(is_low, scales, -scales)
    edge = mx.where(is_low, low, high)
    steps = mx.round(edge / scales)
    scales = mx.where(steps == 0, scales, edge / mx.where(steps == 0, 1, steps))
    return _stored(scales, mx.where(steps == 0, 0, edge), bits, dtype)


def _fitted(weight: mx.array, importance: mx.array, grid: Grid, dtype: mx.Dtype) -> Grid:
    """The weighted least-squares fit of scale and offset to the weights, given the codes of `grid`."""
    codes = grid.codes(weight)
    total = importance.sum(axis=-1, keepdims=True)
    mean_code = (importance * codes).sum(axis=-1, keepdims=True) / total
    mean_weight = (importance * weight).sum(axis=-1, keepdims=True) / total
    weighted = importance * (codes - mean_code)
    spread = (weighted * (codes - mean_code)).sum(axis=-1, keepdims=True)
    common = (weighted * (weight - mean_weight)).sum(axis=-1, keepdims=True)
    scales = mx.where(spread > 0, common / mx.where(spread > 0, spread, 1), 0)
    return _stored(scales, mean_weight - scales * mean_code, grid.bits, dtype)


def _stored(scales: mx.array, biases: mx.array, bits: int, dtype: mx.Dtype) -> Grid:
    return Grid(scales.astype(dtype).astype(mx.float32), biases.astype(dtype).astype(mx.float32), bits)


def _error(weight: mx.array, importance: mx.array, grid: Grid) -> mx.array:
    return (importance * mx.square(weight - grid.values(grid.codes(weight)))).sum(axis=-1, keepdims=True)
