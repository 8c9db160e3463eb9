"""The plan of a conversion's output: names, dtypes, shapes and places of all tensors, before any weight is read."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import mlx.core as mx

from ..checkpoint.files import DTYPES
from ..checkpoint.save import shard_names
from .encoder import PlainEncoder, join, modules
from .stored import Parameter

LAYER = re.compile(r"model\.layers\.(\d+)\.")
EMBEDDINGS = "model.embed_tokens."
CODES = {dtype: code for code, dtype in DTYPES.items()}

# (name, shape) of the tensors of a file that one of ours is written as, byte for byte, in order
Layout = Callable[[str, tuple[int, ...]], list[tuple[str, tuple[int, ...]]]]


@dataclass(frozen=True)
class PlannedTensor:
    """One of our tensors, and where it will lie."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]
    file: str
    begin: int
    """Its first byte in the file."""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.size


@dataclass(frozen=True)
class Shard:
    """A file of the output."""

    name: str
    header: bytes
    """Its first bytes, all before the tensors."""
    nbytes: int
    """Of the whole file."""


@dataclass(frozen=True)
class Group:
    """What is converted together: a decoder layer, or what comes before or after all of them."""

    index: int | None
    parameters: tuple[str, ...]
    """Of ours, as the source has them."""
    tensors: tuple[str, ...]
    """Of the output."""


@dataclass(frozen=True)
class Plan:
    """Every tensor of the output and its place, the files with their headers, and the order of the work."""

    tensors: Mapping[str, PlannedTensor]
    shards: tuple[Shard, ...]
    groups: tuple[Group, ...]
    weight_map: Mapping[str, str]
    """The file of every tensor as it is named there."""

    @cached_property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    @property
    def index(self) -> dict[str, Any]:
        """The content of `model.safetensors.index.json`."""
        return {"metadata": {"total_size": self.nbytes}, "weight_map": dict(sorted(self.weight_map.items()))}

    @property
    def identity(self) -> str:
        """A digest of every header."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(shard.header)
        return digest.hexdigest()


def make_plan(
    parameters: Mapping[str, Parameter], encoder: PlainEncoder, *, shard_bytes: int, layout: Layout | None = None
) -> Plan:
    """The plan of a conversion of these parameters, in files of at most `shard_bytes` of tensors each.

    encoder: says what each module becomes, which `mx.quantize` tells without a weight. layout: how our tensors are
    written, by default as they are. Tensors go to the files in the model's order; a larger one has a file of its own.
    """
    groups = _groups(parameters)
    outputs: dict[str, tuple[mx.Dtype, tuple[int, ...]]] = {}
    done = []
    for index, names in groups:
        made = dict(sorted(_outputs({name: parameters[name] for name in names}, encoder), key=_in_order))
        outputs |= made
        done.append(Group(index, tuple(names), tuple(made)))
    files = _files({name: prod(shape) * dtype.size for name, (dtype, shape) in outputs.items()}, shard_bytes)
    tensors: dict[str, PlannedTensor] = {}
    shards: list[Shard] = []
    weight_map: dict[str, str] = {}
    for file, names in zip(shard_names(len(files)), files, strict=True):
        # the widest numbers first, so that each begins where its width allows it
        names.sort(key=lambda name: -outputs[name][0].size)
        entries = [(name, *outputs[name]) for name in names]
        shard, placed, written = _shard(file, entries, layout or (lambda name, shape: [(name, shape)]))
        shards.append(shard)
        tensors |= placed
        weight_map |= dict.fromkeys(written, file)
    return Plan({name: tensors[name] for name in outputs}, tuple(shards), tuple(done), weight_map)


def _groups(parameters: Mapping[str, Parameter]) -> list[tuple[int | None, list[str]]]:
    """Names in the model's order: the embeddings, layer by layer, the rest; modules together."""
    layers: dict[int, list[str]] = {}
    before: list[str] = []
    after: list[str] = []
    for name, _ in sorted(parameters.items(), key=_in_order):
        if match := LAYER.match(name):
            layers.setdefault(int(match[1]), []).append(name)
        else:
            (before if name.startswith(EMBEDDINGS) else after).append(name)
    return [(None, before), *sorted(layers.items()), (None, after)]


def _in_order(item: tuple[str, Any]) -> tuple[bool, str]:
    """Where a tensor with its name belongs in its group: the final norm before the head."""
    return not item[0].startswith("model."), item[0]


def _outputs(
    parameters: Mapping[str, Parameter], encoder: PlainEncoder
) -> Iterator[tuple[str, tuple[mx.Dtype, tuple[int, ...]]]]:
    """The tensors that parameters become, with dtype and shape."""
    for path, kinds in modules(parameters).items():
        stored = [(kind, parameters[join(path, kind)]) for kind in kinds]
        unread = {kind: mx.zeros(parameter.shape, parameter.dtype) for kind, parameter in stored}
        for kind, array in encoder.module(path, unread).items():
            yield join(path, kind), (array.dtype, array.shape)


def _files(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in order, as many a file as fit."""
    files: list[list[str]] = []
    total = 0
    for name, size in sizes.items():
        if not files or total + size > most:
            files.append([])
            total = 0
        files[-1].append(name)
        total += size
    return files


def _shard(
    file: str, entries: list[tuple[str, mx.Dtype, tuple[int, ...]]], layout: Layout
) -> tuple[Shard, dict[str, PlannedTensor], list[str]]:
    """A file, the places of our tensors in it, and the names it has for them."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    begins, end = [], 0
    for name, dtype, shape in entries:
        begins.append(end)
        for written, its_shape in layout(name, shape):
            stop = end + prod(its_shape) * dtype.size
            header[written] = {"dtype": CODES[dtype], "shape": its_shape, "data_offsets": [end, stop]}
            end = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    tensors = {
        name: PlannedTensor(name, dtype, shape, file, first + begin)
        for (name, dtype, shape), begin in zip(entries, begins, strict=True)
    }
    written_names = [name for name in header if name != "__metadata__"]
    return Shard(file, len(text).to_bytes(8, "little") + text, first + end), tensors, written_names
