"""The cache of one layer: keys and values, all or of a sliding window, or a convolution's last inputs.

Layouts: keys and values are (B, K, N, head_dim), convolution inputs (B, N, D); N, the second axis from the end, is
time. Rows of a batch are aligned at the right: column `offset - 1` is the last token of every row.
"""

import copy
from collections.abc import Sequence
from typing import Self

import mlx.core as mx

from ..errors import CacheError

Arrays = tuple[mx.array, ...]

# Slices of the axes before time: an index without an ellipsis is parsed in half the time, and each step has hundreds.
_BEFORE = {ndim: (slice(None),) * (ndim - 2) for ndim in (3, 4)}

# Positions that a rotating cache holds beyond what the next token needs; half of them can always be taken back.
DEFAULT_SLACK = 1024

# The same in a batch whose rows come and go, where nothing is taken back: half of it lets the prefix cache take the
# last block of an answer.
ROW_SLACK = 512

# MLX's CUDA backend takes a slice of a buffer with a multiple of these columns for one from the buffer's first column
# on (`unslice_kv`), as mlx-lm's caches give them. A rotating cache's slices begin anywhere.
_UNSLICED = 256


class LayerState:
    """What `KVCache.state` gave, read back; KeyError or ValueError if it is none."""

    def __init__(self, state: dict[str, mx.array]) -> None:
        self.start, self.offset = int(state["start"]), int(state["offset"])
        names = sorted(state.keys() - {"start", "offset"})
        self.arrays = [state[f"array{i}"] for i in range(len(names))]
        columns = {array.shape[-2] for array in self.arrays}
        if not 0 <= self.start <= self.offset or columns - {self.offset - self.start}:
            raise ValueError(f"{columns} columns from {self.start} to {self.offset}")

    @property
    def batch_size(self) -> int | None:
        return self.arrays[0].shape[0] if self.arrays else None

    @property
    def layout(self) -> tuple[int, ...]:
        return tuple(array.ndim for array in self.arrays)


class KVCache:
    """Keeps every position, in a buffer that grows in steps. It can step back to any of them."""

    step = 256
    layout: tuple[int, ...] = (4, 4)  # dimensions of the arrays held
    history: int | None = None
    """Columns before a token that it may need; None for all of them."""

    def __init__(self) -> None:
        self.arrays: tuple[mx.array, ...] = ()
        self.start = 0  # position of the buffer's first column
        self.offset = 0  # position after the last one written

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        """Append L columns to each array and return what those L tokens may need, ending with them.

        new: keys and values (B, K, L, head_dim), or whatever has time second from the end; returned alike.
        """
        end = self.offset + new[0].shape[-2]
        self._reserve(end - self.start, new)
        self._write(new)
        return self._columns(self.start, end)

    @property
    def rewindable(self) -> int:
        """How many of the last tokens `rewind` can take back."""
        return self.offset

    def rewindable_after(self, length: int) -> int:
        """What `rewindable` will be once a chunk of `length` more tokens has been appended."""
        return self.offset + length

    def rewind(self, n: int) -> None:
        """Take back the last `n` tokens; CacheError, and nothing changes, if that many cannot be."""
        if not isinstance(n, int) or not 0 <= n <= self.rewindable:
            raise CacheError(f"cannot take back {n} tokens: between 0 and {self.rewindable} can be")
        self.offset -= n

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def state(self) -> dict[str, mx.array]:
        """Everything needed to continue elsewhere, as arrays: the content kept and its place."""
        content = self._columns(self.start, self.offset) if self.arrays else ()
        named = {f"array{i}": array for i, array in enumerate(content)}
        return named | {"start": mx.array(self.start), "offset": mx.array(self.offset)}

    def accepts(self, layout: tuple[int, ...]) -> bool:
        """Whether arrays of these dimensions are such as this cache may hold."""
        return layout == self.layout

    def restore(self, state: LayerState) -> None:
        """Take the place of a cache whose `state` was kept."""
        # writing is in place: copies of the handles keep the caller's state as it is
        self.arrays = tuple(mx.array(array) for array in state.arrays)
        self.start, self.offset = state.start, state.offset

    def kept(self) -> tuple[Arrays, int, int]:
        """`arrays`, `start` and `offset` as they are now, to put them back later."""
        # writing is in place: copies of the handles keep what is held
        return tuple(mx.array(array) for array in self.arrays), self.start, self.offset

    def copy(self, first: int, last: int) -> Arrays:
        """The columns of positions `first` to `last`, all of them held, in arrays of their own."""
        # contiguous: a view would keep the whole buffer alive
        return tuple([mx.contiguous(array) for array in self._columns(first, last)])

    def fill(self, parts: Sequence[Arrays], end: int) -> None:
        """Hold copies of `parts`, one or more, whose columns are the last before position `end`, and nothing else."""
        self.clear()
        columns = sum(part[0].shape[-2] for part in parts)
        self.start = self.offset = end - columns
        self._reserve(columns, parts[0])
        for part in parts:
            self._write(part)

    def clear(self) -> None:
        """Forget everything, the number of rows included."""
        self.arrays, self.start, self.offset = (), 0, 0

    def emptied(self) -> Self:
        """A cache of the same kind that holds nothing, for rows of a batch."""
        made = copy.copy(self)
        made.clear()
        return made

    def kept_of(self, columns: int) -> int:
        """How many of the last of `columns` columns it holds where rows are put together."""
        return columns

    def alike(self, parts: Sequence[Arrays]) -> Sequence[Arrays]:
        """The arrays of several such caches, all in the form in which one cache holds them."""
        return parts

    def capacity(self, columns: int) -> int:
        """Columns of a buffer that is made for `columns` of them."""
        return -(-columns // self.step) * self.step

    @property
    def _capacity(self) -> int:
        return self.arrays[0].shape[-2] if self.arrays else 0

    def _reserve(self, columns: int, like: tuple[mx.array, ...]) -> None:
        """Make room for `columns` columns."""
        if self.arrays and columns <= self._capacity:
            return
        held = self._columns(self.start, self.offset) if self.arrays else ()
        room = self.capacity(columns) - (self.offset - self.start)
        empty = [mx.zeros((*a.shape[:-2], room, a.shape[-1]), a.dtype) for a in like]
        self.arrays = (
            tuple(mx.concatenate([h, e], axis=-2) for h, e in zip(held, empty, strict=True)) if held else tuple(empty)
        )

    def _write(self, new: tuple[mx.array, ...]) -> None:
        first = self.offset - self.start
        last = first + new[0].shape[-2]
        where = (*_BEFORE[new[0].ndim], slice(first, last))
        for array, columns in zip(self.arrays, new, strict=True):
            array[where] = columns
        self.offset += last - first

    def _columns(self, first: int, last: int) -> tuple[mx.array, ...]:
        if not self.arrays:
            return ()
        where = (*_BEFORE[self.arrays[0].ndim], slice(first - self.start, last - self.start))
        return tuple([array[where] for array in self.arrays])


class RotatingKVCache(KVCache):
    """Keeps what the next token may need and some more, so that it can step back past what has scrolled out.

    `history` positions before a token are what it needs (window - 1). The buffer holds `history + slack` columns in
    order; when it is full, the last `history + slack // 2` move to its front, at most once per `slack // 2` tokens. So
    attention always reads one plain slice, and any position not older than the furthest reached less `slack // 2` can
    be returned to.
    """

    step = 250  # no multiple of _UNSLICED until 32,000 columns

    def __init__(self, history: int, slack: int = DEFAULT_SLACK) -> None:
        if not (isinstance(history, int) and isinstance(slack, int) and history >= 0 and slack >= 0):
            raise CacheError(f"history {history} and slack {slack}: both must be integers, 0 or more")
        super().__init__()
        self.history: int = history
        self.slack = slack

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        end = self.offset + new[0].shape[-2]
        first = max(self.start, self.offset - self.history)
        limit = self._limit
        if end - self.start > limit:
            self._drop(self.offset - self.history - self.slack // 2)
        if end - self.start > limit:
            return self._update_long(new, first)
        self._reserve(end - self.start, new)
        self._write(new)
        return self._columns(first, end)

    @property
    def rewindable(self) -> int:
        if self.start == 0:
            return self.offset
        return self.offset - self.start - self.history

    def rewindable_after(self, length: int) -> int:
        start, end = self.start, self.offset + length
        for position in (self.offset, end):  # where columns are dropped, before the chunk and with it
            if end - start > self._limit:
                start = max(start, position - self.history - self.slack // 2)
        return end if start == 0 else end - start - self.history

    def fill(self, parts: Sequence[Arrays], end: int) -> None:
        """The same; of more columns than stay after a shift, the last."""
        room = self.history + self.slack // 2
        kept: list[Arrays] = []
        for part in reversed(parts):
            columns = min(part[0].shape[-2], room)
            kept.append(tuple(array[..., array.shape[-2] - columns :, :] for array in part))
            room -= columns
            if room == 0:
                break
        super().fill(kept[::-1], end)

    def emptied(self) -> Self:
        made = super().emptied()
        made.slack = min(self.slack, ROW_SLACK)
        return made

    def kept_of(self, columns: int) -> int:
        return min(columns, self.history + self.slack // 2)

    def restore(self, state: LayerState) -> None:
        super().restore(state)
        self._pad()

    def capacity(self, columns: int) -> int:
        """The same, up to the limit, and one more where slices would be taken for others."""
        capacity = min(super().capacity(columns), self._limit)
        return capacity + (capacity % _UNSLICED == 0)

    @property
    def _limit(self) -> int:
        """Columns held at most."""
        return self.history + self.slack

    def _pad(self) -> None:
        """One column more for a buffer as long as what it holds, where slices would be taken for others."""
        if self._capacity % _UNSLICED == 0:
            spare = (mx.zeros((*a.shape[:-2], 1, a.shape[-1]), a.dtype) for a in self.arrays)
            self.arrays = tuple(mx.concatenate([a, s], axis=-2) for a, s in zip(self.arrays, spare, strict=True))

    def _drop(self, first: int) -> None:
        """Move the columns from position `first` on to the front of the buffer."""
        if first <= self.start:
            return
        kept = self._columns(first, self.offset)
        spare = (mx.zeros((*a.shape[:-2], first - self.start + self._free, a.shape[-1]), a.dtype) for a in self.arrays)
        self.arrays = tuple(mx.concatenate([k, s], axis=-2) for k, s in zip(kept, spare, strict=True))
        self.start = first

    @property
    def _free(self) -> int:
        return self._capacity - (self.offset - self.start)

    def _update_long(self, new: tuple[mx.array, ...], first: int) -> tuple[mx.array, ...]:
        """Append a chunk longer than the free room: attended from a temporary, only its end is kept."""
        held = self._columns(self.start, self.offset) if self.arrays else tuple(a[..., :0, :] for a in new)
        joined = tuple(mx.concatenate([h, n], axis=-2) for h, n in zip(held, new, strict=True))
        visible = tuple(a[..., first - self.start :, :] for a in joined)
        end = self.offset + new[0].shape[-2]
        start = max(self.start, end - self.history - self.slack // 2)
        # contiguous: a view would keep the whole chunk alive
        self.arrays = tuple(mx.contiguous(a[..., start - self.start :, :]) for a in joined)
        self.start, self.offset = start, end
        self._pad()
        return visible


class ConvCache(RotatingKVCache):
    """The last inputs of a short convolution of `kernel_size` taps, kept as RotatingKVCache keeps keys."""

    layout = (3,)

    def __init__(self, kernel_size: int, slack: int = DEFAULT_SLACK) -> None:
        super().__init__(kernel_size - 1, slack)
