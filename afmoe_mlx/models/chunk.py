"""`Chunk`: the tokens of one forward pass: their positions, padding and masks.

Without a cache, padding may be anywhere and positions are columns, as in Transformers. With one, padding is allowed in
the first chunk alone: rows are moved to the right, so that all end at the same column, and from there on a row's
positions count its own tokens.
"""

from typing import Any

import mlx.core as mx

from ..cache import Cache, QuantizedArray
from ..device import multiplies_slices
from ..errors import InputError
from .attention import Mask, attend, attend_plain, attend_quantized, causal_mask
from .rope import Rope
from .trace import Trace


class Chunk:
    """Masks and positions of `length` new tokens in each of `batch_size` rows, shared by all layers."""

    def __init__(
        self,
        batch_size: int,
        length: int,
        rope: Rope,
        *,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        cache: Cache | None = None,
        ahead: int = 0,
    ) -> None:
        """ahead: tokens between those that the whole cache has seen and these."""
        if length == 0 or batch_size == 0:
            raise InputError("the input has no tokens: expected at least one")
        self.batch_size, self.length, self.ahead = batch_size, length, ahead
        self.attention_mask, self.position_ids = attention_mask, position_ids
        self.cache = cache
        self.left_padded = False  # in the caller's columns
        self.valid: mx.array | None = None  # (B, L) bool, false at padding
        self.shifts: mx.array | None = None  # (B, 1) columns each row is moved to the right
        self._seen = 0
        offset: int | mx.array = 0
        if cache is not None:
            cache.begin(batch_size)
        if attention_mask is not None:
            self._read_mask(attention_mask, batch_size)
        if cache is not None:
            self._seen = cache.offset + ahead
            offset = cache.offsets + ahead if cache.left_padding else self._seen
        if position_ids is None:
            self.place = rope.consecutive(offset, length, end=self._seen + length)
        else:
            self.place = rope.tables(self._read_positions(position_ids, batch_size))
        self._is_padded = self.valid is not None or (cache is not None and bool(cache.left_padding))
        self._masks: dict[tuple[int | None, int, int], Mask] = {}

    def _read_mask(self, attention_mask: mx.array, batch_size: int) -> None:
        seen = self.cache.offset if self.cache is not None else 0
        columns = attention_mask.shape[-1] if attention_mask.ndim == 2 else -1
        if (
            attention_mask.ndim != 2
            or attention_mask.shape[0] != batch_size
            or columns not in (self.length, seen + self.length)
        ):
            raise InputError(
                f"attention_mask has shape {attention_mask.shape}: expected {(batch_size, self.length)}, as the input"
            )
        valid = attention_mask[:, -self.length :].astype(mx.bool_)
        if self.cache is None:
            self.valid = valid
            return
        rows: list[list[bool]] = valid.tolist()  # type: ignore[assignment]
        if columns > self.length and self._padding_of(attention_mask[:, :seen]) != self._left_padding:
            raise InputError("attention_mask has another padding than the first chunk had: leave its columns out")
        if all(all(row) for row in rows):
            return
        if seen:
            raise InputError("attention_mask has padding after the first chunk: a cache allows it in the first alone")
        self._align(rows)

    @property
    def _left_padding(self) -> list[int]:
        assert self.cache is not None
        return list(self.cache.left_padding) or [0] * (self.cache.batch_size or 1)

    def _padding_of(self, mask: mx.array) -> list[int]:
        """How many columns of each row are padding."""
        return (mask == 0).sum(axis=1).tolist()  # type: ignore[return-value]

    def _align(self, rows: list[list[bool]]) -> None:
        """Move every row to the right, so that its padding stands on the left."""
        assert self.cache is not None
        lengths = [sum(row) for row in rows]
        ends = [self.length - row[::-1].index(True) if any(row) else self.length for row in rows]
        for row, length, end in zip(rows, lengths, ends, strict=True):
            if sum(row[end - length : end]) != length:
                raise InputError("attention_mask has a gap within a row: with a cache, padding is at its ends alone")
        self.left_padded = any(not row[0] for row in rows)
        self.cache.left_padding = tuple(self.length - length for length in lengths)
        if any(end != self.length for end in ends):
            self.shifts = mx.array([[self.length - end] for end in ends])
        padding = mx.array(self.cache.left_padding)[:, None]
        self.valid = mx.arange(self.length) >= padding

    def _read_positions(self, position_ids: mx.array, batch_size: int) -> mx.array:
        positions = position_ids[None] if position_ids.ndim == 1 else position_ids
        if positions.ndim != 2 or positions.shape[1] != self.length or positions.shape[0] not in (1, batch_size):
            raise InputError(
                f"position_ids has shape {position_ids.shape}: expected {(batch_size, self.length)}, as the input"
            )
        return self.move(mx.broadcast_to(positions, (batch_size, self.length)))

    def move(self, x: mx.array, *, back: bool = False) -> mx.array:
        """Bring rows (B, L, …) from the caller's columns to the aligned ones, or back."""
        if self.shifts is None:
            return x
        columns = (mx.arange(self.length) + (self.shifts if back else -self.shifts)) % self.length
        return mx.take_along_axis(x, columns.reshape(*columns.shape, *[1] * (x.ndim - 2)), axis=1)

    def attend(self, q: mx.array, k: Any, v: Any, *, window: int | None = None, trace: Trace | None = None) -> mx.array:
        """Attention of queries (B, H, L, d) over the keys and values (B, K heads, K, d) that a cache gave for them.

        With a window, blocks of queries attend to their own slice of keys, so that a long chunk costs no more a token
        than a short one. A trace that keeps attention weights gets those of all keys at once. Without a window k and v
        may be QuantizedArray.
        """
        scale = q.shape[-1] ** -0.5
        traced = trace is not None and "attentions" in trace.keep
        if isinstance(k, QuantizedArray):
            if self.length == 1 and not traced and multiplies_slices():
                mask = self._mask(window, 0, 1, k.weight.shape[2])
                assert not isinstance(mask, str)
                return attend_quantized(q, k, v, scale=scale, mask=mask)
            # for many queries one layer's keys as they were take less memory than all their scores
            k, v = k.dequantized(), v.dequantized()
        if self.length == 1 and not traced and not self._is_padded:
            return attend(q, k, v, scale=scale, mask=None)
        keys = k.shape[2]
        if trace is not None and traced:
            y, weights = attend_plain(q, k, v, scale=scale, mask=self._mask(window, 0, self.length, keys))
            trace.add("attentions", weights)
            return y
        block = self.length if window is None or keys <= window else block_size(window)
        parts = []
        # no block of a single query: MLX's CUDA backend would mistake its slice of keys, see cache/buffers.py
        for start in range(0, max(self.length - 1, 1), block):
            end = start + block if start + block < self.length - 1 else self.length
            last = keys - self.length + end
            first = 0 if window is None else max(0, last - (end - start) - window + 1)
            mask = self._mask(window, keys - last, end - start, last - first)
            part = k[:, :, first:last], v[:, :, first:last]
            parts.append(attend(q[:, :, start:end], *part, scale=scale, mask=mask))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

    def _mask(self, window: int | None, after: int, length: int, keys: int) -> Mask:
        """What `length` tokens, followed by `after` more, may see of the last `keys` columns up to them.

        Made once for all layers, and for all blocks where no row is padded.
        """
        valid = self._valid_columns(after, keys)
        key = (window, length, keys if valid is None else -after - 1)
        if key not in self._masks:
            self._masks[key] = causal_mask(length, keys, window=window, valid=valid)
        return self._masks[key]

    def _valid_columns(self, after: int, keys: int) -> mx.array | None:
        """(B, keys) bool, false at padding, of the `keys` columns before the last `after`; None if all are valid."""
        last = self._seen + self.length - after
        if self.cache is None:
            return None if self.valid is None else self.valid[:, last - keys : last]
        if last - keys >= max(self.cache.left_padding, default=0):
            return None
        return mx.arange(last - keys, last) >= mx.array(self.cache.left_padding)[:, None]


def block_size(window: int) -> int:
    """Queries that share a slice of keys: few against the window, whose keys are read for each, yet a fair product."""
    return min(max(window // 4, 64), 512)
