"""The compiled decode step: one compiled part between each layer's attention and the next one's.

Only the cache stands between them, so that no part has a shape that changes from token to token. Layers of the same
kind share a part, which takes their weights as inputs: few graphs stay in the processor's cache, and replaced weights
count at once. Replaced modules are noticed too; a module's changed number is not (`CausalLM.drop_compiled`).
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import Cache
from .chunk import Chunk
from .rope import Place
from .rows import RowStep
from .streamed import is_streamed

Arrays = tuple[mx.array, ...]

# Tokens of a row that are a step, not a prompt: the last and up to 16 guesses. Each number is a trace of its own.
LONGEST_STEP = 17


class DecodeStep:
    """A few tokens of each row through all layers: the functions of the plain forward pass, compiled between caches.

    outer: the model without its layers, whose `embed_step` and `head_step` begin and end the step. ends: its modules.
    """

    def __init__(self, layers: Sequence[nn.Module], outer: nn.Module, ends: Sequence[nn.Module]) -> None:
        self.layers, self._outer, self._ends = list(layers), outer, list(ends)
        self._submodules = [place for module in (*layers, *ends) for place in _submodules(module)]
        parts: dict[Hashable, Part | SplitPart] = {}
        kinds = [_kind(layer) for layer in self.layers]
        self._first = Part(lambda ids, place, layer, outer: _project(outer.embed_step(ids), place, layer))
        self._between = [
            parts.setdefault(pair, SplitPart(_then_project) if is_streamed(layer) else Part(_finish_and_project))
            for pair, layer in zip(pairwise(kinds), self.layers, strict=False)
        ]
        is_split = is_streamed(self.layers[-1])
        self._last = SplitPart(lambda h, layer, outer: outer.head_step(h)) if is_split else Part(_finish)

    def is_of(self, layers: Sequence[nn.Module], ends: Sequence[nn.Module]) -> bool:
        """Whether it was made for these very modules, none of whose own modules has been replaced."""
        if [*map(id, self.layers), *map(id, self._ends)] != [*map(id, layers), *map(id, ends)]:
            return False
        return all(parent.get(name) is module for parent, name, module in self._submodules)

    def __call__(self, input_ids: mx.array, chunk: Chunk | RowStep, cache: Cache | RowStep) -> mx.array:
        """Logits (B, L, vocab)."""
        place, layers, caches = chunk.place, self.layers, cache.layers
        h, *projected = self._first((layers[0], self._outer), input_ids, place)
        for i, part in enumerate(self._between):
            attended = layers[i].attend(projected, chunk, caches[i])
            h, *projected = part((layers[i], layers[i + 1]), h, attended, place)
        attended = layers[-1].attend(projected, chunk, caches[-1])
        return self._last((layers[-1], self._outer), h, attended)


class Part:
    """A function of arrays and modules, compiled with the modules' arrays as inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        called: list[tuple[nn.Module, ...]] = []

        def traced(trees: tuple[Mapping[str, Any], ...], *arrays: Any) -> Any:
            return function(*arrays, *map(_holding, called[0], trees))

        self._called = called
        self._compiled = mx.compile(traced)

    def __call__(self, modules: tuple[nn.Module, ...], *arrays: Any) -> Any:
        self._called[:] = (modules,)  # whose structure a trace takes, if this call makes one
        return self._compiled(modules, *arrays)


class SplitPart:
    """A part whose first layer reads its experts: compiled up to the router, and `then` from their outputs on.

    then: a function of the layer's output and more.
    """

    def __init__(self, then: Callable[..., Any]) -> None:
        self._before = Part(_choose)
        self._after = Part(lambda h, y, *rest: then(rest[-2].after_mlp(h, y), *rest))

    def __call__(self, modules: tuple[nn.Module, ...], h: mx.array, attended: Arrays, *arrays: Any) -> Any:
        layer: Any = modules[0]
        h, *routed = self._before((layer,), h, attended)
        return self._after(modules, h, layer.sparse.combine(*routed), *arrays)


def _project(h: mx.array, place: Place, layer: Any) -> Arrays:
    return h, *layer.project(h, place)


def _finish_and_project(h: mx.array, attended: Arrays, place: Place, layer: Any, following: Any) -> Arrays:
    return _project(layer.finish(h, attended), place, following)


def _finish(h: mx.array, attended: Arrays, layer: Any, outer: Any) -> mx.array:
    logits: mx.array = outer.head_step(layer.finish(h, attended))
    return logits


def _then_project(h: mx.array, place: Place, layer: Any, following: Any) -> Arrays:
    return _project(h, place, following)


def _choose(h: mx.array, attended: Arrays, layer: Any) -> Arrays:
    h, x = layer.before_mlp(h, attended)
    return h, x, *layer.sparse.choose(x)


def _kind(layer: nn.Module) -> Hashable:
    """What layers that share a part have in common beside their arrays' shapes: every module's type and settings."""
    return tuple((name, type(module), tuple(module), _settings(module)) for name, module in layer.named_modules())


def _settings(module: nn.Module) -> Hashable:
    items = [(name, value) for name, value in vars(module).items() if not name.startswith("_")]
    is_comparable = all(isinstance(value, Hashable) for _, value in items)
    return frozenset(items) if is_comparable else id(module)


def _submodules(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module below one, with the module that holds it and the name there."""
    for name, child in module.items():
        if isinstance(child, nn.Module):
            yield module, name, child
            yield from _submodules(child)


def _holding(module: nn.Module, tree: Mapping[str, Any]) -> nn.Module:
    """A copy of a module that holds a tree's arrays, those of a trace: the module itself is never without its own."""
    traced = copy.copy(module)
    for name, value in tree.items():
        traced[name] = _holding(module[name], value) if isinstance(value, Mapping) else value
    return traced
