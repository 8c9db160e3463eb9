"""Tensors that are not stored, but computed from stored ones when they are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from .files import StoredTensor

Arrays = Mapping[str, mx.array]

# Reads a stored tensor by its name, or a slice (start:stop) of its first axis.
Read = Callable[[str, slice | None], mx.array]

# (parts by kind, rows) -> those rows of the tensor. A part with a row for each of the tensor's has these rows alone.
Formula = Callable[[Arrays, slice], mx.array]


@dataclass(frozen=True, slots=True)
class DerivedTensor(StoredTensor):
    """A tensor that is computed from stored ones. dtype, shape: its own. file: of its largest part."""

    parts: Mapping[str, tuple[str, StoredTensor]]
    """Names and headers of what it is computed from, by kind: "weight_packed"."""
    formula: Formula
    counted: int
    """Bytes on disk that count as this tensor's."""

    @property
    def nbytes(self) -> int:
        return self.counted

    def read(self, read: Read, rows: slice | None = None) -> mx.array:
        """The tensor, or a slice (start:stop) of its first axis; nothing is evaluated."""
        arrays = {}
        for kind, (name, stored) in self.parts.items():
            has_rows = stored.shape[:1] == self.shape[:1]
            arrays[kind] = read(name, rows if has_rows else None)
        return self.formula(arrays, rows or slice(0, *self.shape[:1]))


def lazily(headers: Mapping[str, StoredTensor], stored: Arrays, dtype: mx.Dtype) -> dict[str, mx.array]:
    """The tensors of `headers` as arrays that are read when they are first evaluated, computed floats in `dtype`.

    stored: the tensors of the files, likewise unread.
    """

    def read(name: str, rows: slice | None) -> mx.array:
        return stored[name] if rows is None else stored[name][rows]

    arrays = {}
    for name, header in headers.items():
        if not isinstance(header, DerivedTensor):
            arrays[name] = stored[name]
            continue
        array = header.read(read)
        # each by itself: stacked experts would otherwise wait in float32
        arrays[name] = array.astype(dtype) if header.dtype == "F32" and name.endswith(".weight") else array
    return arrays
