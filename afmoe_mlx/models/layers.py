"""Small blocks that both architectures share: normalization and the gated MLP."""

import math
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..device import one_kernel
from .linear import Linear


def gated(hidden_act: str) -> Callable[[mx.array, mx.array], mx.array]:
    """(gate, up) -> act(gate) * up, with the activation that Transformers' `ACT2FN` has under that name."""
    functions: dict[str, Callable[[mx.array], mx.array]] = {
        "silu": lambda x: x * mx.sigmoid(x),
        "gelu": lambda x: x * (1 + mx.erf(x / math.sqrt(2))) / 2,
        "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: mx.maximum(x, 0),
    }
    activation = functions[hidden_act]
    return one_kernel(lambda gate, up: activation(gate) * up)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; the output keeps the input's dtype whatever the weight's is."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps).astype(x.dtype)


class HeadNorm(nn.Module):
    """RMSNorm over head_dim of several kinds of heads at once, (B, heads, L, head_dim), each kind with its weight."""

    def __init__(self, weights: Sequence[mx.array], heads: Sequence[int], eps: float) -> None:
        super().__init__()
        rows = [mx.broadcast_to(weight, (n, 1, *weight.shape)) for weight, n in zip(weights, heads, strict=True)]
        self.weight = mx.concatenate(rows)
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return (mx.fast.rms_norm(x, None, self.eps) * self.weight).astype(x.dtype)


class MLP(nn.Module):
    """`down(act(gate(x)) * up(x))`. Fused, `gate_up_proj` stands for gate and up."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str = "silu") -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)
        self.hidden_act = hidden_act
        self._gated = gated(hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        if "gate_up_proj" in self:
            gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(self._gated(gate, up))
