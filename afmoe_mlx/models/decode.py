"""The decode step in compiled parts: each is what follows one layer's attention and precedes the next one's.

Only the cache stands between them, so that no part has a shape that changes from token to token. The weights are inputs
of the parts, found anew at each call: replaced ones count at once.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import Cache
from .chunk import Chunk
from .rope import Place

Part = Callable[..., tuple[mx.array, ...]]


class DecodeStep:
    """One token of each row through all layers: the same functions as the plain forward pass, compiled between caches.

    embed: ids (B, 1) -> (B, 1, D). head: the last layer's output -> logits. ends: the modules that the two read.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        embed: Callable[[mx.array], mx.array],
        head: Callable[[mx.array], mx.array],
        ends: Sequence[nn.Module],
    ) -> None:
        self.layers = list(layers)
        first, last = self.layers[0], self.layers[-1]
        parts = [_compiled(_begin(embed, first), first, *ends)]
        parts += [_compiled(_between(one, other), one, other) for one, other in pairwise(self.layers)]
        self._parts: list[Part] = [*parts, _compiled(_end(last, head), last, *ends)]

    def __call__(self, input_ids: mx.array, chunk: Chunk, cache: Cache) -> mx.array:
        """Logits (B, 1, vocab)."""
        h, *projected = self._parts[0](input_ids, chunk.place)
        for layer, layer_cache, part in zip(self.layers, cache.layers, self._parts[1:], strict=True):
            attended = layer.attend(projected, chunk, layer_cache)
            h, *projected = part(h, chunk.place, *attended)
        return h


def _begin(embed: Callable[[mx.array], mx.array], layer: Any) -> Part:
    def part(input_ids: mx.array, place: Place) -> tuple[mx.array, ...]:
        h = embed(input_ids)
        return h, *layer.project(h, place)

    return part


def _between(layer: Any, following: Any) -> Part:
    def part(h: mx.array, place: Place, *attended: mx.array) -> tuple[mx.array, ...]:
        h = layer.finish(h, attended)
        return h, *following.project(h, place)

    return part


def _end(layer: Any, head: Callable[[mx.array], mx.array]) -> Part:
    def part(h: mx.array, _place: Place, *attended: mx.array) -> tuple[mx.array, ...]:
        return (head(layer.finish(h, attended)),)

    return part


def _compiled(function: Part, *modules: nn.Module) -> Part:
    return mx.compile(function, inputs=list(modules))
