"""Small blocks that both architectures share: normalization and the gated MLP."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

Activation = Callable[[mx.array], mx.array]


def activation(name: str) -> Activation:
    """The activation that Transformers' `ACT2FN` has under `name`."""
    functions: dict[str, Activation] = {
        "silu": nn.silu,
        "gelu": nn.gelu,
        "gelu_pytorch_tanh": nn.gelu_approx,
        "relu": partial(mx.maximum, 0.0),
    }
    return functions[name]


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; the output keeps the input's dtype whatever the weight's is."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps).astype(x.dtype)


class MLP(nn.Module):
    """`down(act(gate(x)) * up(x))`. Fused, `gate_up_proj` stands for gate and up."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str = "silu") -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self._activation = activation(hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        if "gate_up_proj" in self:
            gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(self._activation(gate) * up)
