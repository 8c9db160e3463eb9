"""Reading a source's weights under our names, when they are asked for, whole or some rows at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import mlx.core as mx

from ..checkpoint.derived import DerivedTensor
from ..checkpoint.files import DTYPES, FOREIGN_DTYPES, StoredTensor
from ..checkpoint.headers import read_places
from ..checkpoint.layouts import Piece
from ..errors import CheckpointError
from .finite import NotFiniteError, first_not_finite, is_finite
from .source import Source, SourceChangedError

# Reads that may be under way when the numbers of one are looked at, so that nothing waits for that.
UNSEEN = 8


# (parts by kind, slice of the first axis that these are) -> that slice of the parameter
Merge = Callable[[Mapping[str, mx.array], slice], mx.array]


@dataclass(frozen=True)
class Parameter:
    """One of our parameters, and the stored tensors whose bytes it is made of, or that it is computed from."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    pieces: tuple[Piece, ...]
    files: frozenset[str]
    """Names of the shards that have them."""
    derived: tuple[DerivedTensor, ...] = ()
    """Its pieces, if they are computed."""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.size

    def runs(self) -> list[tuple[str, int]]:
        """(stored tensor, byte of it) where each of the equal parts begins that make up the parameter, in order."""
        first = self.pieces[0]
        if first.half is None:
            return [(piece.stored, 0) for piece in self.pieces]
        experts = self.shape[0]
        size = self.nbytes // experts
        return [(first.stored, (2 * expert + first.half) * size) for expert in range(experts)]


@dataclass(frozen=True, kw_only=True)
class MergedParameter(Parameter):
    """One of our parameters that is computed from what is stored of it, in whatever layout, and from adapters."""

    parts: Mapping[str, Parameter]
    """By the last part of their names, such as a quantized weight's scales: all with the first axis that it has."""
    merge: Merge


def parameters_of(
    groups: Mapping[str, list[Piece]], headers: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Parameter]:
    """Our parameters by name; groups and headers: of a checkpoint that was verified. shapes: ours, by name."""
    found = {}
    for name, pieces in groups.items():
        tensors = [headers[piece.stored] for piece in pieces]
        dtypes = sorted({tensor.dtype for tensor in tensors})
        if len(dtypes) > 1:
            what = f"{name} is stored in {' and '.join(dtypes)}"
            raise CheckpointError(f"{tensors[0].file}: {what}: expected one number format for all its experts")
        # a convolution's weight may be transposed: with one axis of length 1, its bytes are the same
        derived = tuple(tensor for tensor in tensors if isinstance(tensor, DerivedTensor))
        stored = [part for tensor in derived for _, part in tensor.parts.values()] or tensors
        files = frozenset(tensor.file.name for tensor in stored)
        found[name] = Parameter(shapes[name], DTYPES[dtypes[0]], tuple(pieces), files, derived)
    return found


class OpenShard:
    """A safetensors file that is read at any place."""

    def __init__(self, path: Path, expected: Mapping[str, StoredTensor]) -> None:
        """expected: what the source said of the file's tensors; SourceChangedError if the file has others."""
        self.path = path
        try:
            self.places = read_places(path)
            self._file = path.open("rb", buffering=0)
        except ValueError as problem:
            raise CheckpointError(f"{path}: not a whole safetensors file ({problem}): download it again") from None
        except OSError as problem:
            raise _unreadable(path, problem) from None
        found = {name: (place.dtype, place.shape) for name, place in self.places.items()}
        if found != {name: (tensor.dtype, tensor.shape) for name, tensor in expected.items()}:
            self.close()
            raise SourceChangedError(path)

    def read_into(self, view: memoryview, begin: int) -> None:
        """Fill a view with the file's bytes from `begin` on."""
        try:
            self._file.seek(begin)
            while view:
                count = self._file.readinto(view)
                if not count:
                    raise SourceChangedError(self.path)
                view = view[count:]
        except OSError as problem:
            raise _unreadable(self.path, problem) from None

    def close(self) -> None:
        self._file.close()


def _unreadable(path: Path, problem: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read: {problem.strerror or problem}")


class SourceReader:
    """Reads a source's tensors, opening its shards when they are needed and leaving them when they are done."""

    def __init__(self, source: Source, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = parameters
        self._source = source
        self._open: dict[str, OpenShard] = {}
        self._unseen: deque[tuple[str, slice | None, mx.array]] = deque()
        """Rows of parameters that were read, and whether they are finite, which is being computed."""
        self._waiting: dict[str, set[str]] = {}
        for name, parameter in parameters.items():
            for file in parameter.files:
                self._waiting.setdefault(file, set()).add(name)
        self._expected: dict[str, dict[str, StoredTensor]] = {}
        for name, tensor in source.headers.items():
            self._expected.setdefault(tensor.file.name, {})[name] = tensor

    def read(self, name: str, rows: slice | None = None) -> mx.array:
        """A parameter, or a slice (start:stop) of its first axis, in the dtype it is stored in.

        NotFiniteError for one that was read before and is not finite.
        """
        array = self._array(self.parameters[name], rows)
        finite = is_finite(array)
        if finite is not None:
            mx.async_eval(finite)
            self._unseen.append((name, rows, finite))
            self.check(UNSEEN)
        return array

    def check(self, unseen: int = 0) -> None:
        """NotFiniteError if what was read is not all finite numbers; the last `unseen` reads may wait."""
        while len(self._unseen) > unseen:
            name, rows, finite = self._unseen.popleft()
            if not finite.item():
                parameter = self.parameters[name]
                if isinstance(parameter, MergedParameter):
                    found = f"{name} is NaN or infinite with the adapter merged, and no model can answer with that"
                    raise NotFiniteError(f"{found}: expected finite numbers: take an earlier state of the adapter")
                array = self._array(parameter, rows).reshape(-1)
                runs, weights = parameter.runs(), prod(parameter.shape)
                place = first_not_finite(array) + (rows.start * weights // parameter.shape[0] if rows else 0)
                stored, _ = runs[place * len(runs) // weights]
                file = self._source.file(min(parameter.files) if parameter.derived else self._file_of(stored))
                found = f"{file}: {stored} holds NaN or infinity, which no model can answer with"
                raise NotFiniteError(f"{found}: expected finite numbers: download it again")

    def _array(self, parameter: Parameter, rows: slice | None) -> mx.array:
        """A parameter, or a slice of its first axis."""
        if isinstance(parameter, MergedParameter):
            parts = {kind: self._array(part, rows) for kind, part in parameter.parts.items()}
            return parameter.merge(parts, rows or slice(0, parameter.shape[0]))
        if parameter.derived:
            return self._computed(parameter, rows)
        begin, stop, shape = _range(parameter.shape, parameter.nbytes, rows)
        array = _filled(stop - begin, lambda view: self._fill(view, parameter, begin))
        return array.view(parameter.dtype).reshape(shape)

    def _computed(self, parameter: Parameter, rows: slice | None) -> mx.array:
        if parameter.pieces[0].expert is None:
            return parameter.derived[0].read(self._tensor, rows)
        return mx.stack([tensor.read(self._tensor) for tensor in parameter.derived[rows or slice(None)]])

    def _tensor(self, stored: str, rows: slice | None) -> mx.array:
        """A stored tensor, or a slice of its first axis, as `mx.load` has it."""
        tensor, shard = self._source.headers[stored], self._shard_of(stored)
        begin, stop, shape = _range(tensor.shape, tensor.nbytes, rows)
        array = _filled(stop - begin, lambda view: shard.read_into(view, shard.places[stored].begin + begin))
        return array.view((DTYPES | FOREIGN_DTYPES)[tensor.dtype]).reshape(shape)

    def _fill(self, view: memoryview, parameter: Parameter, begin: int) -> None:
        """Fill a view with a parameter's bytes from `begin` on."""
        runs = parameter.runs()
        size = parameter.nbytes // len(runs)
        done = 0
        while done < len(view):
            i, inside = divmod(begin + done, size)
            stored, first = runs[i]
            count = min(size - inside, len(view) - done)
            shard = self._shard_of(stored)
            shard.read_into(view[done : done + count], shard.places[stored].begin + first + inside)
            done += count

    def _shard_of(self, stored: str) -> OpenShard:
        file = self._file_of(stored)
        if file not in self._open:
            self._open[file] = OpenShard(self._source.file(file), self._expected[file])
        return self._open[file]

    def _file_of(self, stored: str) -> str:
        return self._source.headers[stored].file.name

    def done(self, names: Iterable[str]) -> None:
        """These parameters are converted and safe on disk: leave the shards that nothing else needs."""
        for name in names:
            for file in self.parameters[name].files:
                self._waiting[file].discard(name)
                if not self._waiting[file] and file in self._open:
                    self._open.pop(file).close()
                    self._source.done(file)

    def close(self) -> None:
        for shard in self._open.values():
            shard.close()
        self._open.clear()


def _range(shape: tuple[int, ...], nbytes: int, rows: slice | None) -> tuple[int, int, tuple[int, ...]]:
    """The bytes (begin, stop) and the shape of an array of some bytes, or of a slice of its first axis."""
    if rows is None:
        return 0, nbytes, shape
    row = nbytes // shape[0]
    return rows.start * row, rows.stop * row, (rows.stop - rows.start, *shape[1:])


def _filled(count: int, fill: Callable[[memoryview], None]) -> mx.array:
    """So many bytes, as `fill` leaves them."""
    array = mx.zeros((count,), mx.uint8, stream=mx.cpu)
    with memoryview(array) as view:  # type: ignore[arg-type]
        fill(view)  # in place: nothing else holds the array yet
    return array


class StoredWeights(Mapping[str, mx.array]):
    """Some of a source's parameters by name, read anew whenever one is asked for."""

    def __init__(self, reader: SourceReader, names: Iterable[str]) -> None:
        self._reader = reader
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> mx.array:
        if name not in self._names:
            raise KeyError(name)
        return self._reader.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def only(self, names: Iterable[str]) -> "StoredWeights":
        """Those of some of the names."""
        return StoredWeights(self._reader, names)

    def rows(self, name: str, rows: slice) -> mx.array:
        """A slice (start:stop) of a parameter's first axis."""
        return self._reader.read(name, rows)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._reader.parameters[name].shape

    def nbytes(self, name: str) -> int:
        """Bytes of a parameter as it is stored."""
        return self._reader.parameters[name].nbytes
