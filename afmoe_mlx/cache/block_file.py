"""The file format of one block of the prefix cache: a magic line, the header's hash and length, the header, the arrays.

The header is JSON: whose block it is, the tokens, and for the whole and the recent layers the arrays' dtypes and shapes
and the hash of their bytes, which follow one another.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .blocks import Columns

MAGIC = b"afmoe-mlx prefix block 1\n"
LENGTH_BYTES = 8
LONGEST_HEADER = 1 << 24
PARTS = ("whole", "recent")
DTYPES = {str(d).removeprefix("mlx.core."): d for d in (mx.float32, mx.float16, mx.bfloat16, mx.uint32, mx.uint8)}


class DamagedFileError(Exception):
    """A file is not a block, or not all of it, or not as it was written."""


def describe(columns: Columns) -> list[list[list[Any]]]:
    """The dtype and shape of every array, for the header."""
    return [[[str(array.dtype).removeprefix("mlx.core."), list(array.shape)] for array in layer] for layer in columns]


def octets(columns: Columns) -> bytes:
    """The bytes of all arrays, copied; waits until they are computed."""
    arrays = [array.view(mx.uint8) for layer in columns for array in layer if array.size]
    return b"".join(bytes(memoryview(array)) for array in arrays)  # type: ignore[arg-type]


def encode(header: Mapping[str, Any], parts: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    """What a file consists of. header: `describe` of the columns under the names of PARTS, and what else is told."""
    hashes = {name + "_sha256": hashlib.sha256(part).hexdigest() for name, part in zip(PARTS, parts, strict=True)}
    told = json.dumps(dict(header) | hashes).encode()
    return MAGIC, hashlib.sha256(told).digest(), len(told).to_bytes(LENGTH_BYTES, "little"), told, *parts


def write(path: Path, content: tuple[bytes, ...], *, used: int) -> None:
    """Write a file that its owner alone may read, whole or not at all; OSError if that fails.

    used: its time of modification, in nanoseconds.
    """
    beside = path.with_name(f".{path.stem[:16]}.{os.urandom(8).hex()}.partial")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.writelines(content)
        os.utime(beside, ns=(used, used))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@dataclass(frozen=True)
class BlockFile:
    """A block's file whose header is in order."""

    path: Path
    header: Mapping[str, Any]
    start: int
    """Where the columns begin."""

    @classmethod
    def open(cls, path: Path) -> "BlockFile":
        """Read the header; OSError, or DamagedFileError if it is none or the file has another size than it says."""
        with path.open("rb") as file:
            before = file.read(len(MAGIC) + 32 + LENGTH_BYTES)
            length = int.from_bytes(before[-LENGTH_BYTES:], "little")
            if not before.startswith(MAGIC) or length > LONGEST_HEADER:
                raise DamagedFileError("not a block")
            told = file.read(length)
            size = os.fstat(file.fileno()).st_size
        if hashlib.sha256(told).digest() != before[len(MAGIC) : -LENGTH_BYTES]:
            raise DamagedFileError("another header than was written")
        try:
            found = cls(path, json.loads(told), len(before) + len(told))
            if size != found.start + sum(found.part_bytes(part) for part in PARTS):
                raise DamagedFileError("another size than was written")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DamagedFileError("a header that makes no sense") from None
        return found

    def part_bytes(self, part: str) -> int:
        return sum(_nbytes(*array) for layer in self.header[part] for array in layer)

    def read(self, part: str) -> Columns:
        """The columns of one of PARTS; OSError, or DamagedFileError if their bytes are not those written."""
        with self.path.open("rb") as file:
            file.seek(self.start + (self.part_bytes("whole") if part == "recent" else 0))
            data = file.read(self.part_bytes(part))
        if hashlib.sha256(data).hexdigest() != self.header[part + "_sha256"]:
            raise DamagedFileError("other columns than were written")
        if not data:
            return tuple(() for _ in self.header[part])
        held = mx.array(memoryview(data))  # type: ignore[arg-type]
        columns, begin = [], 0
        for layer in self.header[part]:
            arrays = []
            for dtype, shape in layer:
                end = begin + _nbytes(dtype, shape)
                arrays.append(held[begin:end].view(DTYPES[dtype]).reshape(shape))
                begin = end
            columns.append(tuple(arrays))
        mx.eval(columns)
        return tuple(columns)


def _nbytes(dtype: str, shape: list[int]) -> int:
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return DTYPES[dtype].size * math.prod(shape)
