"""The weights of other quantizers: what each of their formats stands for, and which are MLX's under other names.

N rows (outputs), K columns (inputs), in a matrix; a scale stands for a block of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError
from ..models.linear import NVFP4_LARGEST
from ..values import listed
from .derived import Arrays, DerivedTensor, Formula
from .files import StoredTensor

FLOATS = ("BF16", "F16", "F32")
Format = Mapping[str, Any]

# The groups of MLX's affine quantization, the largest first.
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class ForeignWeight(ABC):
    """A matrix as another quantizer stored it."""

    path: str
    """Of the module, as it is stored."""
    parts: Mapping[str, StoredTensor]
    """Its tensors by kind: "weight_scale"."""
    width: int
    """K by the config."""

    @property
    @abstractmethod
    def codes(self) -> str:
        """The kind of the largest part."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """N and K, as they are stored."""

    @abstractmethod
    def values(self, parts: Arrays, rows: slice) -> mx.array:
        """Rows of what it stands for, exactly, in float32 (n, K)."""

    @property
    def format(self) -> Format | None:
        """MLX's format that has the same codes; None if there is none."""
        return None

    @property
    def dtypes(self) -> dict[str, str]:
        """Of its parts, by kind."""
        return {kind: part.dtype for kind, part in self.parts.items() if kind != "weight_shape"}

    def kept(self, *, is_expert: bool) -> dict[str, DerivedTensor]:
        """The tensors of a quantized module of MLX that stands for the same, by the last part of their names."""
        raise AssertionError(f"{self.path} has no format of MLX")

    def plain(self) -> DerivedTensor:
        """What it stands for, as one tensor."""
        return self._derived("F32", self.shape, self.values, *self.dtypes, counted=True)

    def _derived(
        self, dtype: str, shape: tuple[int, ...], formula: Formula, *kinds: str, counted: bool = False
    ) -> DerivedTensor:
        """counted: whether the bytes of the whole weight count as this tensor's."""
        parts = {kind: (f"{self.path}.{kind}", self.parts[kind]) for kind in kinds}
        size = sum(part.nbytes for part in self.parts.values()) if counted else 0
        return DerivedTensor(self.parts[self.codes].file, shape, dtype, parts, formula, size)

    def _matrix(self, kind: str, *dtypes: str) -> tuple[int, int]:
        """The shape of a part, which is a matrix of one of some dtypes."""
        found = self.parts[kind]
        if found.dtype not in dtypes or len(found.shape) != 2:
            raise self._refused(kind, f"a matrix of {' or '.join(dtypes)}")
        return (found.shape[0], found.shape[1])

    def _refused(self, kind: str, expected: str) -> CheckpointError:
        found = self.parts[kind]
        what = f"{listed([f'{self.path}.{kind}'])} is {found.dtype} of shape {found.shape}"
        return CheckpointError(f"{found.file}: {what}: expected {expected}")


@dataclass(frozen=True)
class PlainWeight(ForeignWeight):
    """One that was left as it was, among others that were not."""

    codes = "weight"

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix("weight", *FLOATS)

    def values(self, parts: Arrays, rows: slice) -> mx.array:
        return parts["weight"].astype(mx.float32)


@dataclass(frozen=True)
class Float8Weight(ForeignWeight):
    """`weight` in float8 (E4M3) times `weight_scale`: one for all, for each row, or for each block."""

    block: tuple[int, int]
    """Rows and columns of a block, where there are several."""

    codes = "weight"

    def __post_init__(self) -> None:
        scale = self.parts["weight_scale"]
        (n, k), (height, width) = self.shape, self._block()
        is_fitting = len(scale.shape) < 3 and self._counts() == (-(-n // height), -(-k // width))
        if scale.dtype not in FLOATS or not is_fitting:
            blocks = f"block of {self.block[0]} × {self.block[1]}"
            raise self._refused("weight_scale", f"floats, one for all, for each row or for each {blocks}")

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix("weight", "F8_E4M3")

    def values(self, parts: Arrays, rows: slice) -> mx.array:
        scale = parts["weight_scale"].astype(mx.float32).reshape(-1, self._counts()[1])
        return mx.from_fp8(parts["weight"], mx.float32) * spread(scale, rows, self.shape[1], *self._block())

    def _counts(self) -> tuple[int, int]:
        """Scales along each axis."""
        rows, columns = (*self.parts["weight_scale"].shape, 1, 1)[:2]
        return rows, columns

    def _block(self) -> tuple[int, int]:
        """Rows and columns for each scale."""
        (n, k), (rows, columns) = self.shape, self._counts()
        return {n: 1, 1: n}.get(rows, self.block[0]), k if columns == 1 else self.block[1]


@dataclass(frozen=True)
class PackedIntegers(ForeignWeight):
    """Integers of 4 or 8 bits in `weight_packed`, the first of a word lowest, less a zero point, times `weight_scale`.

    All are stored plus half of their range, which is the zero point too where none is stored.
    """

    codes = "weight_packed"

    def __post_init__(self) -> None:
        n, words = self._matrix("weight_packed", "I32")
        rows, groups = self._matrix("weight_scale", *FLOATS)
        if words != -(-self.width // self._per_word):
            raise self._refused("weight_packed", f"{self.width} integers of 4 or 8 bits in each row by the config")
        if rows != n or not groups or self.width % groups:
            raise self._refused("weight_scale", f"{n} rows of one scale for each group of columns")
        if "weight_zero_point" in self.parts:
            found = self._matrix("weight_zero_point", "I32")
            if found != (-(-n // self._per_word), groups):
                rows_in_one = f"{groups} columns, {self._per_word} rows of the scales in one"
                raise self._refused("weight_zero_point", rows_in_one)

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts["weight_packed"].shape[0], self.width

    def values(self, parts: Arrays, rows: slice) -> mx.array:
        words = parts["weight_packed"].view(mx.uint32)[..., None]
        codes = self._code(words, mx.arange(self._per_word)).reshape(words.shape[0], -1)[:, : self.width]
        scale = parts["weight_scale"].astype(mx.float32)
        zero = self._zero(parts, rows)
        zeros = zero if zero.ndim == 0 else self._spread(zero, rows)
        return (codes - zeros) * self._spread(scale, rows)

    @property
    def bits(self) -> int:
        return 4 if self.parts["weight_packed"].shape[1] * 8 < self.width + 8 else 8

    @property
    def format(self) -> Format | None:
        group = self.width // self.parts["weight_scale"].shape[1]
        size = next((size for size in GROUP_SIZES if group % size == 0), None)
        return None if size is None else {"group_size": size, "bits": self.bits, "mode": "affine"}

    def kept(self, *, is_expert: bool) -> dict[str, DerivedTensor]:
        """A code q stands for q · scale - zero · scale, the bias.

        In the scale's dtype -2ⁿ · scale is exact, -zero · scale is not.
        """
        assert self.format is not None
        rows, words = self.parts["weight_packed"].shape
        grid = (rows, self.width // self.format["group_size"])
        scale = self.parts["weight_scale"]
        zero = [kind for kind in ("weight_zero_point",) if kind in self.parts]
        repeats = grid[1] // scale.shape[1]

        def scales(parts: Arrays, rows: slice) -> mx.array:
            return mx.repeat(parts["weight_scale"], repeats, axis=1)

        def biases(parts: Arrays, rows: slice) -> mx.array:
            found = parts["weight_scale"]
            bias = -self._zero(parts, rows) * found.astype(mx.float32)
            return mx.repeat(bias if zero else bias.astype(found.dtype), repeats, axis=1)

        return {
            "weight": self._derived("U32", (rows, words), _as_words, "weight_packed", counted=True),
            "scales": self._derived(scale.dtype, grid, scales, "weight_scale"),
            "biases": self._derived("F32" if zero else scale.dtype, grid, biases, "weight_scale", *zero),
        }

    @property
    def _per_word(self) -> int:
        return 32 // self.bits

    def _code(self, words: mx.array, places: mx.array) -> mx.array:
        """The integers at some places of words, in float32."""
        shifts = (places * self.bits).astype(mx.uint32)
        return ((words >> shifts) & ((1 << self.bits) - 1)).astype(mx.float32)

    def _zero(self, parts: Arrays, rows: slice) -> mx.array:
        """The zero points of rows, (n, groups), or the one of all."""
        if "weight_zero_point" not in parts:
            return mx.array(float(1 << self.bits - 1))
        numbers = mx.arange(rows.start, rows.stop)
        words = parts["weight_zero_point"].view(mx.uint32)[numbers // self._per_word]
        return self._code(words, (numbers % self._per_word)[:, None])

    def _spread(self, values: mx.array, rows: slice) -> mx.array:
        return spread(values, rows, self.width, 1, self.width // values.shape[1])


@dataclass(frozen=True)
class NVFP4Weight(ForeignWeight):
    """FP4 (E2M1) in bytes, the first of two lower, times a float8 scale for each 16 columns, times one for all.

    compressed-tensors stores the reciprocal of the last one, `weight_global_scale`; ModelOpt itself, `weight_scale_2`.
    """

    format = {"group_size": 16, "bits": 4, "mode": "nvfp4"}  # noqa: RUF012

    def __post_init__(self) -> None:
        n, pairs = self._matrix(self.codes, "U8")
        if self._matrix("weight_scale", "F8_E4M3") != (n, pairs // 8) or pairs % 8:
            raise self._refused("weight_scale", f"{n} rows of one scale for each 16 columns, of {2 * pairs}")
        if self.parts[self._whole].dtype not in FLOATS or self.parts[self._whole].shape not in ((), (1,)):
            raise self._refused(self._whole, "one float")

    @property
    def codes(self) -> str:
        return "weight_packed" if "weight_packed" in self.parts else "weight"

    @property
    def shape(self) -> tuple[int, int]:
        n, pairs = self.parts[self.codes].shape
        return n, 2 * pairs

    def values(self, parts: Arrays, rows: slice) -> mx.array:
        codes = _as_words({self.codes: parts[self.codes]}, rows)
        scaled = mx.dequantize(codes, parts["weight_scale"], None, **self.format, dtype=mx.float32)
        return scaled * self._scale(parts)

    def kept(self, *, is_expert: bool) -> dict[str, DerivedTensor]:
        """With the scale of all as `global_scale`: one for an expert, in a linear map one for each row."""
        n, k = self.shape

        def global_scale(parts: Arrays, rows: slice) -> mx.array:
            scale = self._scale(parts) * NVFP4_LARGEST
            return scale if is_expert else mx.broadcast_to(scale, (rows.stop - rows.start,))

        return {
            "weight": self._derived("U32", (n, k // 8), _as_words, self.codes, counted=True),
            "scales": self._derived("U8", (n, k // 16), lambda parts, _: parts["weight_scale"], "weight_scale"),
            "global_scale": self._derived("F32", () if is_expert else (n,), global_scale, self._whole),
        }

    @property
    def _whole(self) -> str:
        """The kind of the scale of all."""
        return "weight_global_scale" if "weight_global_scale" in self.parts else "weight_scale_2"

    def _scale(self, parts: Arrays) -> mx.array:
        found = parts[self._whole].astype(mx.float32).reshape(())
        return 1 / found if self._whole == "weight_global_scale" else found


def _as_words(parts: Arrays, rows: slice) -> mx.array:
    """The one part as words of 32 bits."""
    (codes,) = parts.values()
    return codes.view(mx.uint32)


def spread(values: mx.array, rows: slice, width: int, height: int, columns: int) -> mx.array:
    """Values of blocks for each weight of some rows: (R, C) -> (n, width).

    height, columns: of a block; with a height of 1, the values are those of the rows alone.
    """
    if height > 1:
        values = values[mx.arange(rows.start, rows.stop) // height]
    return mx.repeat(values, columns, axis=1)[:, :width]
