"""Rows of caches put together otherwise, as sequences of a batch join, leave and change places.

Rows are aligned at the right wherever they are, so a block of rows moves by as many columns in every layer; what stands
to the left of a row is zero, and is never attended to.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..errors import CacheError
from .buffers import Arrays, KVCache
from .cache import Cache
from .quantized import QuantizedKVCache

Row = tuple[Cache, int]
"""A cache and the index of one of its rows."""


def row_lengths(cache: Cache) -> list[int]:
    """Tokens that each row of a cache has seen, without its padding."""
    return [cache.offset - padding for padding in cache.left_padding or (0,) * (cache.batch_size or 1)]


def row_kind(cache: Cache, length: int) -> Hashable:
    """What rows of a cache that have seen `length` tokens share with all that they can be together with.

    Rows whose keys and values are quantized, or will be with the next token, stay apart from others.
    """
    quantized = [layer.quantization for layer in cache.layers if isinstance(layer, QuantizedKVCache)]
    return tuple((kind, length >= kind.start) for kind in dict.fromkeys(quantized))


def regroup(groups: Sequence[Sequence[Row]]) -> list[Cache]:
    """Caches that hold these rows, a cache for each group; those that the rows come from are left empty.

    A group that is a whole cache already stays that cache. The others are made layer by layer, so that the keys and
    values of one layer alone are there twice. A row may be in one group. CacheError for one that there is not.
    """
    plans = [_Plan.of(rows) for rows in groups]
    moved = [plan for plan in plans if plan.whole is None]
    sources = {id(block.cache): block.cache for plan in moved for block in plan.blocks}
    if any(plan.whole is not None and id(plan.whole) in sources for plan in plans):
        raise CacheError("a row cannot be in two groups")
    layers: list[list[KVCache]] = [[] for _ in moved]
    for i in range(max((len(cache.layers) for cache in sources.values()), default=0)):
        for plan, made in zip(moved, layers, strict=True):
            made.append(plan.layer(i))
        mx.eval([made[i].arrays for made in layers])
        for cache in sources.values():
            cache.layers[i].clear()
    for cache in sources.values():
        cache.left_padding = ()
        cache.changes += 1
    made_caches = iter([plan.cache(made) for plan, made in zip(moved, layers, strict=True)])
    return [next(made_caches) if plan.whole is None else plan.whole for plan in plans]


@dataclass(frozen=True)
class _Block:
    """Rows `first` to `last` of a cache, without the last."""

    cache: Cache
    first: int
    last: int


@dataclass(frozen=True)
class _Plan:
    """A group to be: blocks of rows and where each row ends up."""

    blocks: list[_Block]
    lengths: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "_Plan":
        blocks: list[_Block] = []
        lengths = []
        known: dict[int, list[int]] = {}
        for cache, index in rows:
            held = known.setdefault(id(cache), row_lengths(cache))
            if not cache.offset or not 0 <= index < len(held):
                raise CacheError(f"the cache has {cache.batch_size or 0} rows with tokens, none with index {index}")
            lengths.append(held[index])
            last = blocks[-1] if blocks else None
            if last is not None and last.cache is cache and last.last == index:
                blocks[-1] = _Block(cache, last.first, index + 1)
            else:
                blocks.append(_Block(cache, index, index + 1))
        return cls(blocks, lengths)

    @property
    def whole(self) -> Cache | None:
        """The cache that this group is already."""
        if len(self.blocks) != 1:
            return None
        (block,) = self.blocks
        is_whole = block.first == 0 and block.last == block.cache.batch_size and self.offset == block.cache.offset
        return block.cache if is_whole else None

    @property
    def offset(self) -> int:
        return max(self.lengths)

    def layer(self, i: int) -> KVCache:
        """Layer `i` of all rows, not evaluated yet."""
        held = [block.cache.layers[i] for block in self.blocks]
        made = held[0].emptied()
        columns = made.kept_of(self.offset)
        contents = made.alike([layer.arrays for layer in held])
        made.arrays = tuple(
            self._joined([arrays[n] for arrays in contents], held, columns, made.capacity(columns + 1))
            for n in range(len(contents[0]))
        )
        made.start, made.offset = self.offset - columns, self.offset
        return made

    def _joined(self, arrays: Sequence[mx.array], held: Sequence[KVCache], columns: int, capacity: int) -> mx.array:
        """One array of all blocks, their last `columns` columns, and zeros where there is none."""
        _, *middle, _, width = arrays[0].shape
        joined = mx.zeros((len(self.lengths), *middle, capacity, width), arrays[0].dtype)
        row = 0
        for block, array, layer in zip(self.blocks, arrays, held, strict=True):
            end, rows = layer.offset - layer.start, block.last - block.first
            taken = min(end, columns)
            part = array[block.first : block.last, ..., end - taken : end, :]
            joined[row : row + rows, ..., columns - taken : columns, :] = part
            row += rows
        return joined

    def cache(self, layers: list[KVCache]) -> Cache:
        made = Cache(layers)
        padding = tuple(self.offset - length for length in self.lengths)
        made.left_padding = padding if any(padding) else ()
        return made


def row_of(cache: Cache, index: int) -> Cache:
    """One row alone, without its padding, in views of the cache's buffers: to be read and then forgotten.

    The cache itself where that is all it holds.
    """
    if cache.batch_size == 1 and not any(cache.left_padding):
        return cache
    length = row_lengths(cache)[index]
    shift = cache.offset - length
    layers = []
    for layer in cache.layers:
        made = layer.emptied()
        first = max(layer.start, shift)
        arrays: Arrays = tuple(a[index : index + 1, ..., first - layer.start :, :] for a in layer.arrays)
        made.arrays, made.start, made.offset = arrays, first - shift, length
        layers.append(made)
    return Cache(layers)
