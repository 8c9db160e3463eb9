"""GPTQ (Frantar et al., 2022): columns are rounded one after the other, and what rounding one does to the outputs is
made up for by the columns that follow."""

from dataclasses import dataclass

import mlx.core as mx

from .scales import Quantized, best_grid

# Added to the diagonal of the second moments, as a share of its mean: this for as many tokens as channels, and less the
# more tokens there are, as chance has less of a part in them; within bounds.
DAMPING, LEAST_DAMPING, MOST_DAMPING = 2.0, 1e-3, 10.0


@dataclass(frozen=True)
class Curvature:
    """The curvature (Hessian) of a linear map's output error in its weights, factorized."""

    factor: mx.array
    """(B, in, in): the upper Cholesky factor of the inverse of the damped second moments."""
    importance: mx.array
    """(B, in): their diagonal."""

    @classmethod
    def from_moments(cls, moments: mx.array, tokens: int) -> "Curvature":
        """moments: (B, in, in) float32, Σ w x xᵀ over the inputs x of each map, in any unit; tokens: of the text."""
        width = moments.shape[-1]
        mean = mx.diagonal(moments, axis1=-2, axis2=-1).mean(axis=-1)
        damping = min(max(DAMPING * width / max(tokens, 1), LEAST_DAMPING), MOST_DAMPING)
        scaled = moments / mx.where(mean > 0, mean, 1)[:, None, None]
        damped = scaled + damping * mx.eye(width)
        with mx.stream(mx.cpu):  # the only device that factors matrices
            inverse = mx.linalg.inv(damped)
            factor = mx.linalg.cholesky((inverse + inverse.swapaxes(-1, -2)) / 2, upper=True)
        return cls(factor, mx.diagonal(damped, axis1=-2, axis2=-1))


def quantize_gptq(weight: mx.array, curvature: Curvature, *, group_size: int, bits: int, dtype: mx.Dtype) -> Quantized:
    """Quantize weights (B, out, in) float32 for the least error of their outputs.

    A group's scale and offset are chosen when its columns are reached, from what these are by then. dtype: of scales
    and biases.
    """
    codes, scales, biases = [], [], []
    for start in range(0, weight.shape[-1], group_size):
        stop = start + group_size
        group, weight = weight[..., :group_size], weight[..., group_size:]
        factor = curvature.factor[:, start:stop]
        grid = best_grid(group, curvature.importance[:, None, start:stop], bits=bits, dtype=dtype)
        errors, chosen = [], []
        for i in range(group_size):
            column = group[..., i : i + 1]
            code = grid.codes(column)
            error = (column - grid.values(code)) / factor[:, i, start + i, None, None]
            group = group - error * factor[:, i : i + 1, start:stop]  # nothing before column i: it is triangular
            errors.append(error)
            chosen.append(code)
        weight = weight - mx.concatenate(errors, axis=-1) @ factor[..., stop:]
        codes.append(mx.concatenate(chosen, axis=-1))
        scales.append(grid.scales)
        biases.append(grid.biases)
        mx.eval(weight, codes[-1])
    joined = [mx.concatenate(parts, axis=-1) for parts in (codes, scales, biases)]
    return Quantized.from_codes(joined[0], joined[1], joined[2], bits, dtype)
