"""`StreamedExperts`: a layer's experts of which only some are in memory; others are read when the router chooses them.

What comes out has the bits of `Experts` with all in memory. The host reads the router's choice, and so waits for it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..device import is_cpu
from .moe import SORT_FROM, SORT_FROM_PER_EXPERT, Experts, sorts
from .pool import ExpertPool, ExpertSource

# Of some tokens: x (..., D), experts and weights (..., k), as `Experts` takes them.
Routed = tuple[mx.array, mx.array, mx.array]


class StreamedExperts(nn.Module):
    """In the place of `Experts`, with their arrays hidden in a pool: parameters do not change."""

    def __init__(self, pool: ExpertPool) -> None:
        super().__init__()
        self._pool = pool  # no setting by which compiled parts differ

    @property
    def pool(self) -> ExpertPool:
        return self._pool

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """As Experts. Raises AfmoeError for an expert that cannot be read."""
        return self.over([(x, experts, weights)])[0]

    def over(self, chunks: Sequence[Routed]) -> list[mx.array]:
        """What calls would give for chunks of tokens that follow one another; none of the experts is read twice."""
        mx.eval(chunks)
        chosen: list[list[int]] = [experts.flatten().tolist() for _, experts, _ in chunks]  # type: ignore[misc]
        last_use = dict.fromkeys(expert for chunk in reversed(chosen) for expert in reversed(chunk))
        needed = [*reversed(last_use)]
        with self._pool.lock:
            order = self._pool.order(needed)
            parts = [_Chunk(self._pool.experts, chunk, ids, order) for chunk, ids in zip(chunks, chosen, strict=True)]
            self._pool.run(needed, lambda experts, slots: [y for part in parts for y in part.compute(experts, slots)])
        return [part.result() for part in parts]


class _Chunk:
    """Some tokens, and what is made for them by one group of their experts after the other.

    chosen: the routed experts one by one. order: of all experts that are going to be computed with.
    """

    def __init__(self, module: Experts, routed: Routed, chosen: Sequence[int], order: Sequence[int]) -> None:
        self._module, (self._x, self._experts, self._weights) = module, routed
        self._chosen, self._order = chosen, order
        self._is_sorted = sorts(len(chosen), module.num_experts)
        self._counts = Counter(chosen)
        self._sorting: mx.array | None = None
        self._done = 0
        self._made: list[mx.array] = []

    def compute(self, experts: Sequence[int], slots: Sequence[int]) -> list[mx.array]:
        """Apply the next experts, which are in these slots; what is made."""
        if len(experts) == len(self._order):  # at once, as if all were in memory
            slot_of = dict(zip(experts, slots, strict=True))
            places = mx.array([slot_of[expert] for expert in self._chosen], mx.uint32)
            self._made = [self._module(self._x, places.reshape(self._experts.shape), self._weights)]
            return self._made
        places = mx.array(
            [slot for expert, slot in zip(experts, slots, strict=True) for _ in range(self._counts[expert])], mx.uint32
        )
        if not places.size:
            return []
        if self._sorting is None:
            self._sorting = self._argsort()
        rows = self._sorting[self._done : self._done + places.size]
        self._done += places.size
        self._made.append(self._apply(rows, places))
        return self._made[-1:]

    def result(self) -> mx.array:
        """What `Experts` gives: (..., D) in float32."""
        if self._sorting is None:
            return self._made[0]
        y = mx.concatenate(self._made)[mx.argsort(self._sorting)].reshape(*self._experts.shape, -1)
        return (y * self._weights[..., None]).sum(axis=-2)

    def _argsort(self) -> mx.array:
        """The products (N · k,) of tokens and experts in the order of the experts, each expert's in that of tokens."""
        rank = [0] * self._module.num_experts
        for i, expert in enumerate(self._order):
            rank[expert] = i
        return mx.argsort(mx.array(rank)[self._experts.flatten()])

    def _apply(self, rows: mx.array, places: mx.array) -> mx.array:
        """(n, D) of n products, by experts in these slots."""
        count = rows.size
        if self._is_sorted and not is_cpu():
            # Metal takes another kernel, which rounds otherwise, for few rows an array of experts
            least = max(SORT_FROM, SORT_FROM_PER_EXPERT * self._module.down_proj.weight.shape[0])
            rows, places = (_repeat_last(array, least) for array in (rows, places))
        x = self._x.reshape(-1, self._x.shape[-1])[rows // self._experts.shape[-1]]
        return self._module.outputs(x[:, None], places, ordered=self._is_sorted)[:count, 0]


def _repeat_last(array: mx.array, least: int) -> mx.array:
    """(n,) -> the same with its last element repeated until there are `least`."""
    missing = max(least - array.size, 0)
    return mx.concatenate([array, mx.broadcast_to(array[-1:], (missing,))]) if missing else array


@dataclass(frozen=True)
class ExpertPlacement:
    """Which experts are in memory: all of the first layers that have any, and of the others so many at a time."""

    slots: int
    """2 or more."""
    whole_layers: int = 0

    def streamed(self, model: nn.Module) -> dict[int, str]:
        """The layers that read their experts, and the paths of these: {3: "model.layers.3.mlp.experts"}.

        Of a part of a model, its own layers, by their places in the whole.
        """
        found = {}
        for i, layer in zip(model.part, model.layers, strict=True):
            if (block := layer.sparse) is not None:
                name = next(name for name, module in layer.items() if module is block)
                found[i] = f"model.layers.{i}.{name}.{block.ROUTED}"
        return dict(list(found.items())[self.whole_layers :])


def leave_room(layer: nn.Module, slots: int) -> None:
    """Replace the arrays of a layer's experts, of whatever they are made, by empty ones for `slots` of them."""
    experts = layer.sparse[layer.sparse.ROUTED]
    for linear in experts.children().values():
        for name, array in linear.parameters().items():
            linear[name] = mx.zeros((slots, *array.shape[1:]), array.dtype)


def stream_layer(model: nn.Module, layer: nn.Module, source: ExpertSource) -> None:
    """Read the experts of a model's layer from a source: those that its arrays have rows for are in memory at a time.

    Rows beyond them, where shared experts were put behind the routed ones, stay as they are.
    """
    block = layer.sparse
    experts = block[block.ROUTED]
    slots = experts.down_proj.weight.shape[0] - (experts.num_experts - block.config.num_experts)
    block[block.ROUTED] = StreamedExperts(ExpertPool(experts, slots, source, model.expert_reads))
    model.reads_experts = True


def is_streamed(layer: nn.Module) -> bool:
    """Whether a decoder layer reads its experts when they are chosen."""
    return pool_of(layer) is not None


def pool_of(layer: nn.Module) -> ExpertPool | None:
    """What a decoder layer that reads its experts holds of them; None for any other layer."""
    experts = None if layer.sparse is None else layer.sparse[layer.sparse.ROUTED]
    return experts.pool if isinstance(experts, StreamedExperts) else None
