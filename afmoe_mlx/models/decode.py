"""A step of decoding in compiled parts: each is what follows one layer's attention and precedes the next one's.

Only the cache stands between them, so that no part has a shape that changes from token to token. Layers of the same
kind share a part, which takes their weights as inputs: few graphs stay in the processor's cache, and replaced weights
count at once.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import Cache
from .chunk import Chunk
from .rope import Place

Arrays = tuple[mx.array, ...]

# Tokens of a row that are a step, not a prompt: the last and up to 16 guesses. Each number is a trace of its own.
LONGEST_STEP = 17


class DecodeStep:
    """A few tokens of each row through all layers: the functions of the plain forward pass, compiled between caches.

    embed: ids (B, L) -> (B, L, D), or (B, D) if the layers take that. head: the last layer's output -> logits
    (B, L, vocab). ends: the modules that the two read.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        embed: Callable[[mx.array], mx.array],
        head: Callable[[mx.array], mx.array],
        ends: Sequence[nn.Module],
    ) -> None:
        self.layers = list(layers)
        self.ends = list(ends)
        first, last = self.layers[0], self.layers[-1]
        parts: dict[Hashable, Part] = {}
        kinds = [_kind(layer) for layer in self.layers]
        self._first = Part(lambda ids, place, layer, *_: _project(embed(ids), place, layer))
        self._between = [parts.setdefault(pair, Part(_finish_and_project)) for pair in pairwise(kinds)]
        self._last = Part(lambda h, attended, layer, *_: head(layer.finish(h, attended)))
        self._first_modules, self._last_modules = (first, *ends), (last, *ends)

    def is_of(self, layers: Sequence[nn.Module], ends: Sequence[nn.Module]) -> bool:
        """Whether it was made for these very modules, none of which has been replaced."""
        return [*map(id, self.layers), *map(id, self.ends)] == [*map(id, layers), *map(id, ends)]

    def __call__(self, input_ids: mx.array, chunk: Chunk, cache: Cache) -> mx.array:
        """Logits (B, L, vocab)."""
        place, layers, caches = chunk.place, self.layers, cache.layers
        h, *projected = self._first(self._first_modules, input_ids, place)
        for i, part in enumerate(self._between):
            attended = layers[i].attend(projected, chunk, caches[i])
            h, *projected = part((layers[i], layers[i + 1]), h, place, attended)
        return self._last(self._last_modules, h, layers[-1].attend(projected, chunk, caches[-1]))


class Part:
    """A function of arrays and modules, compiled with the modules' arrays as inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        called: list[tuple[nn.Module, ...]] = []

        def traced(trees: tuple[Mapping[str, Any], ...], *arrays: Any) -> Any:
            modules = called[0]
            with _holding(modules, trees):
                return function(*arrays, *modules)

        self._called = called
        self._compiled = mx.compile(traced)

    def __call__(self, modules: tuple[nn.Module, ...], *arrays: Any) -> Any:
        self._called[:] = (modules,)  # whose structure a trace takes, if this call makes one
        return self._compiled(modules, *arrays)


def _project(h: mx.array, place: Place, layer: Any) -> Arrays:
    return h, *layer.project(h, place)


def _finish_and_project(h: mx.array, place: Place, attended: Arrays, layer: Any, following: Any) -> Arrays:
    return _project(layer.finish(h, attended), place, following)


def _kind(layer: nn.Module) -> Hashable:
    """What layers that share a part have in common beside their arrays' shapes: every module's type and settings."""
    return tuple((name, type(module), _settings(module)) for name, module in layer.named_modules())


def _settings(module: nn.Module) -> Hashable:
    items = [(name, value) for name, value in vars(module).items() if not name.startswith("_")]
    is_comparable = all(isinstance(value, Hashable) for _, value in items)
    return frozenset(items) if is_comparable else id(module)


@contextmanager
def _holding(modules: Sequence[nn.Module], trees: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Inside, the modules hold the trees' arrays, those of a trace."""
    own = [_arrays(module) for module in modules]
    for module, tree in zip(modules, trees, strict=True):
        _put(module, tree)
    try:
        yield
    finally:
        for module, tree in zip(modules, own, strict=True):
            _put(module, tree)


def _arrays(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _arrays(value) if isinstance(value, Mapping) else value for name, value in tree.items()}


def _put(module: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _put(module[name], value)
        else:
            module[name] = value
