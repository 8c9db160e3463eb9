"""`RowStep`: one more token in each row of several caches at once, groups of rows of similar length.

Everything but attention runs over all rows together; keys and values are each group's own, so that a short row is not
padded to a long one. To layers it is both the `Chunk` and the caches.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..cache import Cache, KVCache, QuantizedArray, row_lengths
from ..device import multiplies_slices
from .attention import attend, attend_quantized
from .rope import Rope
from .trace import Trace


class RowStep:
    """Positions and masks of one token in each row of `caches`, in their order, shared by all layers."""

    length = 1
    valid = None

    def __init__(self, caches: Sequence[Cache], rope: Rope) -> None:
        for cache in caches:
            cache.begin(cache.batch_size or 1)
        lengths = [length for cache in caches for length in row_lengths(cache)]
        self.place = rope.consecutive(mx.array(lengths), 1, end=max(lengths) + 1)
        self._groups = [_Group(cache) for cache in caches]
        sizes = [cache.batch_size or 1 for cache in caches]
        self.batch_size = sum(sizes)
        self._bounds = [sum(sizes[:n]) for n in range(1, len(sizes))]
        if len(caches) == 1:
            self.layers: Sequence[Any] = caches[0].layers
        else:
            parts = zip(*(cache.layers for cache in caches), strict=True)
            self.layers = [_GroupedLayer(layers, self._bounds) for layers in parts]

    def attend(self, q: mx.array, k: Any, v: Any, *, window: int | None = None, trace: Trace | None = None) -> mx.array:
        """Attention of queries (B, H, 1, d) over what a layer's `update` gave for them: (B, H, 1, d).

        Nothing that a window hides is among it.
        """
        if len(self._groups) == 1:
            return self._groups[0].attend(q, k, v)
        parts = zip(self._groups, mx.split(q, self._bounds), k, v, strict=True)
        return mx.concatenate([group.attend(*part) for group, *part in parts])


class _Group:
    """The rows of one cache in a step, and which of its columns are theirs."""

    def __init__(self, cache: Cache) -> None:
        self._end = cache.offset + 1
        self._padding = cache.left_padding
        self._most = max(self._padding, default=0)
        self._masks: dict[int, mx.array] = {}

    def attend(self, q: mx.array, k: Any, v: Any) -> mx.array:
        scale = q.shape[-1] ** -0.5
        if isinstance(k, QuantizedArray):
            mask = self._mask(k.weight.shape[-2], q.shape[1])
            if multiplies_slices():
                return attend_quantized(q, k, v, scale=scale, mask=mask)
            return attend(q, k.dequantized(), v.dequantized(), scale=scale, mask=mask)
        return attend(q, k, v, scale=scale, mask=self._mask(k.shape[-2], q.shape[1]))

    def _mask(self, keys: int, heads: int) -> mx.array | None:
        """(B, H, 1, keys) bool, false at padding, made once for all layers with so many keys; None if all are seen."""
        first = self._end - keys
        if first >= self._most:
            return None
        if keys not in self._masks:
            valid = mx.arange(first, self._end) >= mx.array(self._padding)[:, None]
            # contiguous: Metal copies a mask that its heads share, in every layer
            mask = mx.broadcast_to(valid[:, None, None], (len(self._padding), heads, 1, keys))
            self._masks[keys] = mx.contiguous(mask)
        return self._masks[keys]


class _GroupedLayer:
    """A layer's caches of several groups."""

    def __init__(self, layers: Sequence[KVCache], bounds: list[int]) -> None:
        self._layers, self._bounds = layers, bounds

    def update(self, *new: mx.array) -> Any:
        """Append a column to each array; keys and values of each group, or a convolution's inputs (B, N, D)."""
        parts = zip(self._layers, *(mx.split(array, self._bounds) for array in new), strict=True)
        found = [layer.update(*arrays) for layer, *arrays in parts]
        if len(new) > 1:
            return tuple(zip(*found, strict=True))
        columns = 1 + (self._layers[0].history or 0)
        inputs = [
            x if x.shape[1] == columns else mx.pad(x, [(0, 0), (columns - x.shape[1], 0), (0, 0)]) for (x,) in found
        ]
        return (mx.concatenate(inputs),)
