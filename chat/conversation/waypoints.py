"""Waypoints: copies of what sliding and convolution layers hold, so that a cache can be rewound beyond their windows.

A cache steps back by itself while nothing has been dropped, and then as far as its slack (`cache.buffers`). A long
answer goes beyond that. What its layers with a window or a convolution need at a place is little, and near places share
it; so it is kept where turns begin and end. The other layers step back to anywhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx

from afmoe_mlx import device
from afmoe_mlx.cache import Cache
from afmoe_mlx.cache.blocks import Columns, nbytes

# What part of the free memory the places may take, unless told, and what where the device does not tell.
MEMORY_SHARE, UNTOLD = 8, 1 << 29


@dataclass(frozen=True)
class Piece:
    """A copy of the columns of layers that forget, sliding and convolution, from position `start` to `end`."""

    start: int
    end: int
    columns: Columns


class Waypoints:
    """Places in one sequence of tokens that its cache can be rewound to; beyond `max_bytes`, the first are dropped."""

    def __init__(self, max_bytes: int | None = None) -> None:
        if max_bytes is None:
            usable = device.memory().usable
            max_bytes = UNTOLD if usable is None else usable // MEMORY_SHARE
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._pieces: list[Piece] = []

    def mark(self, cache: Cache, positions: Iterable[int]) -> None:
        """Keep what a return to each of `positions` takes, as far as the cache has it; those known cost nothing."""
        history = _history(cache)
        if not history or not cache.is_whole:  # layers elsewhere could not be brought back with these
            return
        held = max(cache.layers[i].start for i in _forgetful(cache))
        for position in sorted(positions):
            last = self._pieces[-1].end if self._pieces else 0
            start = max(last, position - history, 0)
            if start < position <= cache.offset and start >= held:
                columns = tuple(cache.layers[i].copy(start, position) for i in _forgetful(cache))
                mx.async_eval(columns)  # now, so that the buffers are not held by the wish to copy
                self._pieces.append(Piece(start, position, columns))
                self.nbytes += nbytes(columns)
        while self.nbytes > self.max_bytes:
            self.nbytes -= nbytes(self._pieces.pop(0).columns)

    def nearest(self, cache: Cache, position: int) -> int:
        """The last place not after `position` that the cache can go back to; 0 for none."""
        ends = (piece.end for piece in reversed(self._pieces) if piece.end <= min(position, cache.offset))
        return next((end for end in ends if self._covers(cache, end) and _others_reach(cache, end)), 0)

    def go_back(self, cache: Cache, place: int) -> None:
        """Bring the cache to a place that `nearest` has named."""
        cache.changes += 1
        for layer in cache.layers:
            if layer.history is None:
                layer.rewind(layer.offset - place)
        columns = zip(*(piece.columns for piece in self._before(place)), strict=True)
        for i, parts in zip(_forgetful(cache), columns, strict=True):
            cache.layers[i].fill(parts, place)

    def cut(self, position: int) -> None:
        """Forget the places after `position`, where another text goes on."""
        while self._pieces and self._pieces[-1].end > position:
            self.nbytes -= nbytes(self._pieces.pop().columns)

    def _before(self, place: int) -> list[Piece]:
        """The pieces that join up to a place, in order."""
        parts: list[Piece] = []
        for piece in reversed(self._pieces):
            if piece.end == (parts[0].start if parts else place):
                parts.insert(0, piece)
        return parts

    def _covers(self, cache: Cache, place: int) -> bool:
        return self._before(place)[0].start <= max(0, place - _history(cache))


def _forgetful(cache: Cache) -> list[int]:
    return [i for i, layer in enumerate(cache.layers) if layer.history is not None]


def _history(cache: Cache) -> int:
    """Columns before a place that the layers that forget need: one at least, for its shape; 0 without such layers."""
    return max((cache.layers[i].history or 1 for i in _forgetful(cache)), default=0)


def _others_reach(cache: Cache, place: int) -> bool:
    """Whether the layers that keep everything can step back so far: quantized ones may not."""
    return all(layer.offset - place <= layer.rewindable for layer in cache.layers if layer.history is None)
