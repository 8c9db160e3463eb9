"""`convert --dry-run`: the tensors that a conversion would write, as a table or as JSON."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..models import make_model
from ..terminal import printable, size
from .encoder import QUANTIZED, join
from .job import Job
from .model_card import formats_of
from .recipe import Format
from .source import Source
from .stored import MergedParameter, Parameter

# Other quantizers' formats, by the dtype of their codes.
FOREIGN = {"F8_E4M3": "float8", "I32": "integers", "U8": "nvfp4"}
LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<rest>.+)")
COLUMNS = "{:36} {:>20}  {:10}  {:24} {:>10}\n"


@dataclass(frozen=True)
class Row:
    """One weight of a model, and the format a conversion gives it."""

    name: str
    """Of the module's path, for a `weight`; else of the parameter."""
    shape: tuple[int, ...]
    """Unquantized."""
    dtype: str
    """As stored: "bfloat16", or a quantized one's format."""
    becomes: str
    format: Format | None
    bytes: int
    """To be written, with scales and biases."""


@dataclass(frozen=True)
class DryRun:
    """What a conversion would write."""

    model: str
    recipe: str
    rows: Sequence[Row]
    source_bytes: int
    calibration_tokens: int | None
    """Of the text, that are used; None where nothing is calibrated."""

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Of all that is written, scales and what is not quantized included."""
        return 8 * self.bytes / sum(prod(row.shape) for row in self.rows)


def describe(model: str, source: Source, job: Job, calibration_tokens: int | None = None) -> DryRun:
    """The dry run of a source's job; model: what the user calls the source."""
    options = job.options
    weights = dict(tree_flatten(make_model(job.config).parameters()))
    before = formats_of(_stored_names(job.parameters), job.quantization or {})
    after = {path: chosen for path, chosen in job.formats.items() if chosen is not None}
    if not options.quantizes and not options.dequantize:
        after = before
    sizes: dict[str, int] = {}
    for tensor in job.plan.tensors.values():
        path, _, kind = tensor.name.rpartition(".")
        name = f"{path}.weight" if kind in QUANTIZED else tensor.name
        sizes[name] = sizes.get(name, 0) + tensor.nbytes
    rows = []
    for name, count in sizes.items():
        path = name.removesuffix(".weight")
        was = words(before.get(path)) or _stored_as(job.parameters[name])
        becomes = words(after.get(path)) or dtype_name(job.plan.tensors[name].dtype)
        rows.append(Row(path, weights[name].shape, was, becomes, after.get(path), count))
    stored_bytes = sum(tensor.nbytes for tensor in source.headers.values())
    return DryRun(model, _title(job), rows, stored_bytes, calibration_tokens)


def _stored_names(parameters: Mapping[str, Parameter]) -> Iterator[str]:
    """What is stored: of merged parameters, what they are computed from."""
    for name, parameter in parameters.items():
        parts = parameter.parts if isinstance(parameter, MergedParameter) else (name.rpartition(".")[2],)
        yield from (join(name.rpartition(".")[0], kind) for kind in parts)


def _stored_as(parameter: Parameter) -> str:
    """The number format of an unquantized weight, or of what it is computed from."""
    if not parameter.derived:
        return dtype_name(parameter.dtype)
    codes = max((part for _, part in parameter.derived[0].parts.values()), key=lambda part: part.nbytes)
    return FOREIGN.get(codes.dtype, dtype_name(parameter.dtype))


def _title(job: Job) -> str:
    options = job.options
    if options.dequantize:
        return "dequantized, in the Hub's layout"
    if options.recipe is not None:
        return f"by the recipe {options.recipe if isinstance(options.recipe, str) else options.recipe.name}"
    recipe = options.chosen_recipe()
    if recipe is not None:
        return f"in {words(recipe.default)}"
    return "not quantized" if job.quantization is None else "quantized as it is"


def dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def words(chosen: Format | None) -> str | None:
    """A format for a person: "4 bits, groups of 64"; None for none."""
    if chosen is None:
        return None
    if chosen["mode"] != "affine":
        return str(chosen["mode"])
    return f"{chosen['bits']} bits, groups of {chosen['group_size']}"


def as_text(run: DryRun, *, verbose: bool = False) -> str:
    """A table of every tensor, in which layers alike are one unless `verbose`."""
    title = f"{printable(run.model)}, {printable(run.recipe)}\n\n"
    head = COLUMNS.format("", "shape", "stored as", "becomes", "size")
    lines = "".join(map(_line, run.rows) if verbose else _folded(run.rows))
    total = f"{size(run.source_bytes)} become {size(run.bytes)}, {run.bits_per_weight:.2f} bits a weight"
    calibrated = f" Calibrated with {run.calibration_tokens:,} tokens." if run.calibration_tokens is not None else ""
    return f"{title}{head}{lines}\n{total}.{calibrated} Nothing was written.\n"


def as_json(run: DryRun) -> dict[str, Any]:
    """Every tensor, and what they come to."""
    tensors = [
        {
            "name": row.name,
            "shape": row.shape,
            "dtype": row.dtype,
            "becomes": row.becomes,
            "format": row.format,
            "bytes": row.bytes,
        }
        for row in run.rows
    ]
    return {
        "model": run.model,
        "recipe": run.recipe,
        "source_bytes": run.source_bytes,
        "bytes": run.bytes,
        "bits_per_weight": run.bits_per_weight,
        "calibration_tokens": run.calibration_tokens,
        "tensors": tensors,
    }


def _line(row: Row, name: str | None = None) -> str:
    shape = " × ".join(map(str, row.shape))
    return COLUMNS.format(printable(name or row.name), shape, row.dtype, row.becomes, _megabytes(row.bytes))


def _megabytes(count: int) -> str:
    """Bytes in the unit of a column, so that they can be compared at a glance."""
    return f"{count / 1e6:,.1f} MB" if count >= 5e4 else f"{count / 1e6:.3f} MB"


def _folded(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table: all layers whose tensors are alike stand together where the first of them does."""
    layers: dict[int, list[tuple[str, Row]]] = {}
    for row in rows:
        if match := LAYER.fullmatch(row.name):
            layers.setdefault(int(match["layer"]), []).append((match["rest"], row))
    alike: dict[tuple[Any, ...], list[int]] = {}
    for layer, tensors in layers.items():
        signature = tuple((rest, row.shape, row.dtype, row.becomes) for rest, row in tensors)
        alike.setdefault(signature, []).append(layer)
    after = False
    for row in rows:
        if not LAYER.fullmatch(row.name):
            yield _line(row)
        elif not after:
            after = True
            for numbers in alike.values():
                yield from _section(numbers, layers[numbers[0]])
            yield "\n"


def _section(numbers: Sequence[int], tensors: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """Layers that are alike: a heading, and the tensors of one of them, its small ones as one line."""
    one = sum(row.bytes for _, row in tensors)
    title = f"layer {ranges(numbers)}" if len(numbers) == 1 else f"{len(numbers)} layers: {ranges(numbers)}"
    each = "" if len(numbers) == 1 else f" each, {size(one * len(numbers))} together"
    yield f"\n{title}\n"
    yield from (_line(row, f"  {rest}") for rest, row in tensors if len(row.shape) > 1)
    small: dict[tuple[str, str], list[tuple[str, Row]]] = {}
    for rest, row in tensors:
        if len(row.shape) == 1:
            small.setdefault((row.dtype, row.becomes), []).append((rest, row))
    for (was, becomes), found in small.items():
        title = f"  {len(found)} norms and biases" if len(found) > 1 else f"  {found[0][0]}"
        yield COLUMNS.format(title, "", was, becomes, _megabytes(sum(row.bytes for _, row in found)))
    yield f"  {size(one)}{each}\n"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in order as people write them: 0-1, 4, 8-11."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in run] for _, run in runs]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ends)
