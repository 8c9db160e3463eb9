"""The cache of a batch, all layers together: what `model.make_cache()` returns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx

from ..errors import CacheError, InputError
from .buffers import KVCache, LayerState


class Cache:
    """One object for all layers. Rows are aligned at the right; row b begins at column `left_padding[b]`."""

    is_whole = True
    """Whether it has all of the model's layers, so that what is done to them is done to all of it."""

    def __init__(self, layers: Sequence[KVCache]) -> None:
        self.layers = list(layers)
        self.left_padding: tuple[int, ...] = ()  # empty when no row is padded
        self.changes = 0  # so that who goes on with it can tell whether another has used it

    @property
    def offset(self) -> int:
        """Columns seen, padding included. A step interrupted half-way does not count."""
        return min([layer.offset for layer in self.layers])

    @property
    def batch_size(self) -> int | None:
        """Rows held; None before the first token."""
        arrays = self.layers[0].arrays
        return arrays[0].shape[0] if arrays else None

    @property
    def offsets(self) -> mx.array:
        """(B,) int32: tokens seen by each row, without its padding."""
        padding = self.left_padding or (0,) * (self.batch_size or 1)
        return mx.array([self.offset - p for p in padding], mx.int32)

    @property
    def rewindable(self) -> int:
        """How many of the last tokens of every row can be taken back exactly, now."""
        offset = self.offset
        reach = min(layer.rewindable - (layer.offset - offset) for layer in self.layers)
        return min(reach, offset - max(self.left_padding, default=0))

    def rewindable_after(self, length: int) -> int:
        """What `rewindable` will be once a chunk of `length` more tokens has been seen."""
        reach = min(layer.rewindable_after(length) for layer in self.layers)
        return min(reach, self.offset + length - max(self.left_padding, default=0))

    def rewind(self, n: int) -> None:
        """Take back the last `n` tokens of every row; CacheError, and nothing changes, if `n` > `rewindable`."""
        if not isinstance(n, int) or not 0 <= n <= self.rewindable:
            raise CacheError(f"cannot take back {n} tokens: at most {max(self.rewindable, 0)} can be now")
        self.changes += 1
        position = self.offset - n
        for layer in self.layers:
            layer.rewind(layer.offset - position)

    def begin(self, batch_size: int) -> None:
        """Make ready for a chunk of `batch_size` rows; undoes what an interrupted step left behind."""
        self.changes += 1
        offset = self.offset
        if offset == 0:
            self.left_padding = ()
            for layer in self.layers:
                layer.clear()
        if any([layer.offset != offset for layer in self.layers]):  # noqa: C419 (half the time, at each step)
            if self.rewindable < 0:
                raise CacheError("a step was interrupted and cannot be undone: make a new cache")
            self.rewind(0)
        if self.batch_size not in (None, batch_size):
            raise InputError(f"the cache holds {self.batch_size} rows, the input has {batch_size}")

    @contextmanager
    def restored_on_failure(self, length: int) -> Iterator[None]:
        """Should the block fail, which runs `length` tokens through one layer after the other, be as before it."""
        offset = self.offset
        # only of layers that could not step back: keeping the old buffer takes a copy of it
        kept = {layer: layer.kept() for layer in self.layers if layer.rewindable_after(length) < length}
        try:
            yield
        except BaseException:
            self.changes += 1
            for layer in self.layers:
                if layer in kept:
                    layer.arrays, layer.start, layer.offset = kept[layer]
                else:
                    layer.rewind(layer.offset - offset)
            raise

    @property
    def arrays(self) -> list[mx.array]:
        """The buffers themselves, to evaluate them."""
        return [array for layer in self.layers for array in layer.arrays]

    @property
    def nbytes(self) -> int:
        """Bytes held by all buffers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def state(self) -> dict[str, mx.array]:
        """All that is needed to continue later, as named arrays; assign it to a new cache of the same model."""
        named = {f"{i}.{name}": a for i, layer in enumerate(self.layers) for name, a in layer.state.items()}
        return named | {"left_padding": mx.array(self.left_padding, mx.int32)}

    @state.setter
    def state(self, state: dict[str, mx.array]) -> None:
        try:
            parts: list[dict[str, mx.array]] = [{} for _ in self.layers]
            for name, array in state.items():
                index, _, part = name.partition(".")
                if part:
                    parts[int(index)][part] = array
            held = [LayerState(part) for part in parts]
            left_padding = tuple(int(p) for p in state["left_padding"])
        except (KeyError, IndexError, ValueError):
            raise CacheError(f"this state is not one of a model with {len(self.layers)} layers") from None
        if len({(layer.offset, layer.batch_size) for layer in held}) > 1:
            raise CacheError("this state's layers disagree on what they have seen")
        if not all(layer.accepts(state.layout) for layer, state in zip(self.layers, held, strict=True) if state.arrays):
            raise CacheError("this state is of another architecture's model, or of keys quantized otherwise")
        self.changes += 1
        for layer, layer_state in zip(self.layers, held, strict=True):
            layer.restore(layer_state)
        self.left_padding = left_padding
