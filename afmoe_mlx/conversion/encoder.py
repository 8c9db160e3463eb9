"""`Encoder`, which decides what is stored for each tensor, and `PlainEncoder`, which takes each by itself."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from .. import device
from ..models.linear import NVFP4_LARGEST
from .recipe import Format
from .stored import StoredWeights

# Bytes that are computed with at a time: what is larger comes in several arrays of rows.
PIECE_BYTES = 4 << 20

# Floating numbers that keep their dtype whatever is asked for.
FIXED = ("expert_bias", "global_scale")


class Encoder(Protocol):
    """Decides what is stored for each tensor of a plan, a decoder layer at a time.

    One that carries state from layer to layer keeps it in files of its own, each written beside and renamed. What it
    yielded of a layer is safe on disk before the next layer is asked for. After a crash, another process calls `encode`
    again for every layer that is not wholly written, in order, each from its `start` on.
    """

    @property
    def identity(self) -> str:
        """A line of all that the result depends on beside weights, formats and dtype, such as a calibration's text.

        A conversion is continued only by one whose encoder has the same.
        """

    @property
    def scratch_bytes(self) -> int:
        """Bytes of its files at the most; 0 for one that has none."""

    def start(self, group: int) -> int:
        """The place in the plan's groups, this one or one before it, that `encode` has to begin at to get to this one.

        Those between are encoded again, to the same tensors.
        """

    def is_done(self, group: int, missing: set[str]) -> bool:
        """Whether a group needs no `encode`, if these of its tensors are not on disk: `finish` gives them all."""

    def encode(self, index: int | None, weights: StoredWeights) -> Iterator[tuple[str, mx.array]]:
        """The tensors to store for a decoder layer, as (name, array), in any order.

        index: the decoder layer. None for the weights that are in none, which come in two calls: first the embeddings,
        and after all layers the final norm and the head. weights: a mapping of our names, such as
        "model.layers.3.mlp.experts.up_proj.weight" (E, out, in), to arrays in the dtype they are stored in. Each is
        read from disk when it is asked for, anew every time, and held by nobody else.

        Yields exactly the tensors of the plan with the dtypes it has, ".weight", ".scales" and ".biases" of quantized
        modules, but for those that `finish` gives. A large one may come in several arrays, slices of its first axis in
        order, with others between. Arrays need not be evaluated: while one is computed and written, the next is asked
        for.
        """

    def finish(self, folder: Path, on_step: Callable[[int, int], None]) -> Iterator[tuple[str, mx.array]]:
        """The tensors that can be made only once all others are safe on disk, in the plan's files in `folder`.

        on_step: called with how much of that is done, and with the whole, in one unit.
        """


class PlainEncoder:
    """Quantizes, dequantizes or copies tensor by tensor and holds nothing: weights as `mx.quantize` has them."""

    identity = "plain"
    scratch_bytes = 0

    def __init__(
        self,
        formats: Mapping[str, Format | None],
        *,
        stored: Mapping[str, Format] | None = None,
        dtype: mx.Dtype | None = None,
        fixed: Collection[str] = FIXED,
    ) -> None:
        """formats: of modules by path; what is not named is not quantized. dtype: of other weights, None as stored.

        stored: the formats of modules that are quantized already and shall be plain. fixed: last parts of the names of
        what is as stored in any case.
        """
        self._formats = formats
        self._stored = stored or {}
        self._dtype = dtype
        self._fixed = fixed

    def start(self, group: int) -> int:
        """As `Encoder.start`: every group is by itself."""
        return group

    def is_done(self, group: int, missing: set[str]) -> bool:
        """As `Encoder.is_done`."""
        return not missing

    def finish(self, folder: Path, on_step: Callable[[int, int], None]) -> Iterator[tuple[str, mx.array]]:
        """As `Encoder.finish`: nothing."""
        return iter(())

    def encode(self, index: int | None, weights: StoredWeights) -> Iterator[tuple[str, mx.array]]:
        """As `Encoder.encode`, in pieces of PIECE_BYTES, each computed on the next of the device's parallel streams."""
        streams = cycle(device.parallel_streams())
        for path, kinds in modules(weights).items():
            for rows in self._slices(path, kinds, weights):
                parts = {kind: weights.rows(join(path, kind), rows) for kind in kinds}
                with mx.stream(next(streams)):
                    encoded = self.module(path, parts)
                del parts
                for kind in list(encoded):
                    yield join(path, kind), encoded.pop(kind)

    def module(self, path: str, parts: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """What is stored for a module's tensors, by the last part of their names, or for slices of their first axis.

        Nothing is evaluated: for arrays that never are, this tells names, shapes and dtypes alone.
        """
        chosen, was = self._formats.get(path), self._stored.get(path)
        rest = dict(parts)
        encoded: dict[str, mx.array] = {}
        if was is not None:
            encoded["weight"] = self.cast("weight", dequantized(rest, was))
            rest = {kind: array for kind, array in rest.items() if kind not in QUANTIZED}
        elif chosen is not None:
            quantized = mx.quantize(self.cast("weight", rest.pop("weight")), **chosen)
            encoded |= zip(("weight", "scales", "biases"), quantized, strict=False)
        return encoded | {kind: self.cast(kind, array) for kind, array in rest.items()}

    def cast(self, kind: str, array: mx.array) -> mx.array:
        """An unquantized tensor in the dtype it is stored in; kind: the last part of its name."""
        if self._dtype is None or kind in self._fixed or not mx.issubdtype(array.dtype, mx.floating):
            return array
        return array.astype(self._dtype)

    def _slices(self, path: str, kinds: Iterable[str], weights: StoredWeights) -> Iterator[slice]:
        """Of the first axis, which all tensors of a module have in common, as much at a time as is computed with."""
        total = sum(weights.nbytes(join(path, kind)) for kind in kinds)
        if (was := self._stored.get(path)) is not None:
            total = total * 32 // was["bits"]
        (length,) = {weights.shape(join(path, kind))[0] for kind in kinds}
        step = max(PIECE_BYTES * length // total, 1)
        return (slice(start, min(start + step, length)) for start in range(0, length, step))


# The tensors of a quantized module that stand for its plain weight.
QUANTIZED = ("weight", "scales", "biases", "global_scale")


def dequantized(parts: Mapping[str, mx.array], options: Mapping[str, Any]) -> mx.array:
    """The plain weight that the tensors of a quantized module stand for."""
    weight, scales = parts["weight"], parts["scales"]
    if "global_scale" not in parts:
        return mx.dequantize(weight, scales, parts.get("biases"), **options)
    scale = (parts["global_scale"] / NVFP4_LARGEST).reshape(-1, *[1] * (weight.ndim - 1))
    return mx.dequantize(weight, scales, None, **options, dtype=mx.float32) * scale


def modules(names: Iterable[str]) -> dict[str, list[str]]:
    """The last parts of tensors' names by the paths of the modules they belong to, in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        path, _, kind = name.rpartition(".")
        found.setdefault(path, []).append(kind)
    return found


def join(path: str, kind: str) -> str:
    return f"{path}.{kind}"
