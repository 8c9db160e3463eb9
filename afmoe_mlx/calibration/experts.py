"""Calibration of a mixture of experts: every expert sees every token, while the router still decides the output.

The scheme is that of llm-compressor's calibration modules: an expert that few tokens of a text are routed to is
nevertheless measured on all of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from ..models.linear import quantized_product
from ..models.moe import Experts

# What a token counts for an expert that it is not routed to, as a share of what it counts for those that it is.
UNROUTED = 0.1

# (path of a linear map, expert or None, its inputs (N, in), what each counts (N,) or None for 1)
Observer = Callable[[str, int | None, mx.array, mx.array | None], None]


@contextmanager
def calibrating(
    model: nn.Module,
    calibrate_all_experts: bool = True,
    observe: Observer | None = None,
    *,
    unrouted: float = UNROUTED,
) -> Iterator[nn.Module]:
    """Inside, all tokens go through all experts of an unfused model, or a part of one; on leaving it is as before.

    The routing weights still decide the output, which is the same but for rounding. observe: called with the inputs of
    every linear map before it runs, and what each token counts for the error of its outputs: for an expert the square
    of its routing weight, and without one `unrouted` of the token's mean square, or nothing unless
    `calibrate_all_experts`. Nothing is evaluated. Raises InputError for a fused model.
    """
    share = unrouted if calibrate_all_experts else 0.0
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, parent in list(model.named_modules()):
            if isinstance(parent, Experts):
                continue
            for name, child in list(parent.children().items()):
                new = _replacement(f"{path}.{name}" if path else name, child, share, observe)
                if new is not None:
                    replaced.append((parent, name, child))
                    parent[name] = new
        yield model
    finally:
        for parent, name, child in replaced:
            parent[name] = child


def _replacement(path: str, child: object, unrouted: float, observe: Observer | None) -> nn.Module | None:
    if isinstance(child, Experts):
        if "gate_up_proj" in child:
            raise InputError(f"{path} is fused: expected a model of load_model(…, fuse=False)")
        return AllExperts(child, path, observe, unrouted)
    if observe is not None and isinstance(child, nn.Linear | nn.QuantizedLinear):
        return Observed(child, path, observe)
    return None


class Observed(nn.Module):
    """A linear map that shows its inputs."""

    def __init__(self, linear: nn.Module, path: str, observe: Observer) -> None:
        super().__init__()
        self.linear = linear
        self._path, self._observe = path, observe

    def __call__(self, x: mx.array) -> mx.array:
        self._observe(self._path, None, x.reshape(-1, x.shape[-1]), None)
        return self.linear(x)


class AllExperts(nn.Module):
    """`Experts`, unfused, with every token through every expert."""

    def __init__(self, experts: Experts, path: str, observe: Observer | None, unrouted: float) -> None:
        super().__init__()
        self.experts = experts
        self._path, self._observe = path, observe
        self._unrouted = unrouted

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """As Experts."""
        count = self.experts.down_proj.weight.shape[0]
        tokens = x.reshape(-1, x.shape[-1])
        routing = spread(experts, weights, count)
        counts = importance(routing, weights.shape[-1], self._unrouted)
        total = mx.zeros(tokens.shape, mx.float32)
        for expert in range(count):
            hidden = self._hidden(expert, tokens, counts[:, expert])
            y = expert_product(hidden, self.experts.down_proj, expert)
            total = total + y.astype(mx.float32) * routing[:, expert, None]
        return total.reshape(x.shape)

    def _hidden(self, expert: int, tokens: mx.array, counts: mx.array) -> mx.array:
        for name in ("gate_proj", "up_proj"):
            self._show(name, expert, tokens, counts)
        hidden = expert_hidden(self.experts, expert, tokens)
        self._show("down_proj", expert, hidden, counts)
        return hidden

    def _show(self, name: str, expert: int, x: mx.array, counts: mx.array) -> None:
        if self._observe is not None:
            self._observe(f"{self._path}.{name}", expert, x, counts)


def spread(experts: mx.array, weights: mx.array, count: int) -> mx.array:
    """Experts and weights (…, k) of N tokens -> weights (N, E) float32, zero for the others of `count` experts."""
    k = experts.shape[-1]
    routing = mx.zeros((experts.size // k, count))
    return mx.put_along_axis(routing, experts.reshape(-1, k), weights.reshape(-1, k).astype(mx.float32), axis=-1)


def importance(routing: mx.array, k: int, unrouted: float) -> mx.array:
    """What each token counts for each expert, (N, E), given routing weights (N, E) of which k a token are not zero."""
    squares = mx.square(routing)
    return mx.where(routing != 0, squares, unrouted * squares.sum(axis=-1, keepdims=True) / k)


def expert_hidden(experts: Experts, expert: int, x: mx.array) -> mx.array:
    """act(gate(x)) * up(x) of one expert: x (N, D) -> (N, m)."""
    gate, up = (expert_product(x, experts[name], expert) for name in ("gate_proj", "up_proj"))
    return experts._gated(gate, up)


def expert_product(x: mx.array, module: nn.Module, expert: int) -> mx.array:
    """x (N, in) times the transposed weight of one expert of a stacked map."""
    if "scales" in module:
        return quantized_product(x, module, expert)
    return x @ module.weight[expert].T.astype(x.dtype)
