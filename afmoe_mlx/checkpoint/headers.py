"""Reading the header of a safetensors file.

The safetensors package imports NumPy to open one, and that takes longer than opening a small model.
"""

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

# Bits of one element.
BITS = (
    {"F4": 4}
    | dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8)
    | dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
    | dict.fromkeys(("U32", "I32", "F32"), 32)
    | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)
)
LARGEST = 100_000_000  # bytes of a header, as in the safetensors package

Tensors = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of a header: dtype, shape, and where in the file its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


def read_header(path: Path) -> Tensors:
    """The dtype and shape of every tensor of a file, by name; ValueError if it is no whole safetensors file."""
    return {name: (place.dtype, place.shape) for name, place in read_places(path).items()}


def read_places(path: Path) -> dict[str, Place]:
    """The dtype, shape and place of every tensor of a file, by name; ValueError if it is no whole safetensors file."""
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size - 8
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= min(length, LARGEST):
            raise ValueError(f"its header has {size} bytes, the rest of the file {max(length, 0)}")
        text = file.read(size)
    try:
        header = json.loads(text.decode())
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    ranges = {name: _range(entry) for name, entry in header.items()}
    end = 0
    for begin, stop in sorted(ranges.values()):
        if begin != end:
            raise ValueError(f"no tensor begins at byte {end} of its data")
        end = stop
    if end != length - size:
        raise ValueError(f"its tensors have {end} bytes, its data {length - size}")
    return {
        name: Place(entry["dtype"], tuple(entry["shape"]), 8 + size + ranges[name][0]) for name, entry in header.items()
    }


def _range(entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end; ValueError if that does not fit its dtype and shape."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(stop)]} if dtype in BITS:
            if all(type(n) is int and n >= 0 for n in shape) and (stop - begin) * 8 == prod(shape) * BITS[dtype]:
                return begin, stop
    raise ValueError("its header describes a tensor that there cannot be")
