"""Experts read from a checkpoint's files when they are wanted, by several threads, into whatever memory they belong in.

The files are watched: weights of another model, or half of a file, never get into an answer.
"""

import hashlib
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError
from .derived import DerivedTensor
from .files import DTYPES
from .headers import Place, read_places
from .layouts import Piece
from .verify import Groups, Headers

# An SSD is at its fastest with several reads under way.
THREADS = 8

# Of a file: how many bytes at how many places tell whether it has the content of the one that it replaces.
SAMPLE, SAMPLES = 4096, 256

BACK = "put back the file that the model was loaded from, or load the model anew"


class ExpertFiles:
    """The files of a model whose experts are read, and the threads that do it."""

    def __init__(self, folder: Path, groups: Groups, headers: Headers) -> None:
        self._folder, self._groups, self._headers = folder, groups, headers
        self._files: dict[Path, WatchedFile] = {}
        self._places: dict[Path, dict[str, Place]] = {}
        self.threads = ThreadPoolExecutor(THREADS, "experts")

    def layer(self, path: str, num_experts: int) -> "LayerExperts":
        """The experts of a layer by their module's path, such as "model.layers.3.mlp.experts".

        Raises CheckpointError for those that are stored in a way that must be computed first.
        """
        names = sorted(name for name in self._groups if name.startswith(f"{path}."))
        tensors = {name.removeprefix(f"{path}."): self._tensor(self._groups[name], num_experts) for name in names}
        return LayerExperts(self.threads, tensors)

    def _tensor(self, pieces: Sequence[Piece], num_experts: int) -> "_Tensor":
        headers = [self._headers[piece.stored] for piece in pieces]
        if any(isinstance(header, DerivedTensor) for header in headers):
            raise CheckpointError(
                f"{self._folder}: its experts are in another quantizer's format, and cannot be read one by one: convert"
                " the model first (afmoe-mlx convert)"
            )
        files = [self._watched(header.file) for header in headers]
        begins = [self._places[h.file][piece.stored].begin for h, piece in zip(headers, pieces, strict=True)]
        dtype, nbytes = headers[0].dtype, headers[0].nbytes
        if pieces[0].expert is not None:  # a tensor each
            return _Tensor(DTYPES[dtype], nbytes, files, begins)
        stride, half = nbytes // num_experts, pieces[0].half
        size, begin = (stride, begins[0]) if half is None else (stride // 2, begins[0] + half * (stride // 2))
        return _Tensor(DTYPES[dtype], size, files, range(begin, begin + num_experts * stride, stride))

    def _watched(self, path: Path) -> "WatchedFile":
        if path not in self._files:
            self._files[path] = WatchedFile(path)
            self._places[path] = read_places(path)
        return self._files[path]


@dataclass(frozen=True)
class _Tensor:
    """What one of the tensors of all experts is stored in, and where: `size` bytes of each."""

    dtype: mx.Dtype
    size: int
    files: Sequence["WatchedFile"]
    """One for all experts, or one each."""
    begins: Sequence[int]

    def file(self, expert: int) -> "WatchedFile":
        return self.files[expert if len(self.files) > 1 else 0]

    def read(self, expert: int, into: memoryview) -> None:
        self.file(expert).read(into, self.begins[expert])


_Task = tuple[int, Sequence[tuple[_Tensor, memoryview]]]


class LayerExperts:
    """The experts of one layer: a `models.pool.ExpertSource`."""

    def __init__(self, threads: ThreadPoolExecutor, tensors: Mapping[str, _Tensor]) -> None:
        self._threads, self._stored = threads, list(tensors.values())
        self.tensors = {name: tensor.dtype for name, tensor in tensors.items()}
        self.expert_bytes = sum(tensor.size for tensor in self._stored)
        files = dict.fromkeys(file for tensor in self._stored for file in tensor.files)
        self.identity = " ".join(file.identity for file in files)

    def read(self, wanted: Mapping[int, Sequence[memoryview]]) -> "Batch":
        """What is to read experts, each into the views of its `tensors` in their order.

        Raises CheckpointError for a file that is not the one that the model was loaded from.
        """
        files = list(dict.fromkeys(tensor.file(expert) for expert in wanted for tensor in self._stored))
        for file in files:
            file.check()
        # of a few experts the tensors are read beside each other, too
        step = len(self._stored) if len(wanted) >= THREADS else -(-len(self._stored) // 3)
        tasks: list[_Task] = []
        for expert, views in wanted.items():
            pairs = list(zip(self._stored, views, strict=True))
            tasks += [(expert, pairs[first : first + step]) for first in range(0, len(pairs), step)]
        return Batch(self._threads, tasks, files)


def _read_all(task: _Task) -> float:
    """Read tensors of an expert; when that was done."""
    expert, pairs = task
    for tensor, view in pairs:
        tensor.read(expert, view)
    return time.perf_counter()


class Batch:
    """Experts that are to be read."""

    def __init__(self, threads: ThreadPoolExecutor, tasks: Sequence[_Task], files: "Sequence[WatchedFile]") -> None:
        self._threads, self._files = threads, files
        # made before any is under way: one that only the executor knew of could not be waited for
        self._tasks: list[tuple[Future[float], _Task]] = [(Future(), task) for task in tasks]
        self._is_begun = False
        self._began = time.perf_counter()

    def begin(self) -> None:
        """Read them from now on."""
        self._began = time.perf_counter()
        for future, task in self._tasks:
            self._threads.submit(_run, future, task)
        self._is_begun = True

    def wait(self) -> float:
        """Wait until nothing is written any more; the seconds from the beginning of reading to its end.

        Raises CheckpointError if not all was read, or files changed meanwhile.
        """
        futures = [future for future, _ in self._tasks]
        if not self._is_begun:
            wait([future for future in futures if not future.cancel()])
            raise CheckpointError("reading experts was interrupted")
        wait(futures)
        ends = [future.result() for future in futures]
        for file in self._files:
            file.check()
        return max(ends, default=self._began) - self._began


def _run(future: "Future[float]", task: _Task) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(_read_all(task))
        except BaseException as error:
            future.set_exception(error)


class WatchedFile:
    """A file that is read in pieces as long as it is the one that it was at first.

    By its size and time, at each `check`; where these differ, or it was lost meanwhile, by samples of its content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = self._open()
        self._is_lost = False
        opened = self._opened
        self.identity = f"{opened.samples} {opened.size} {opened.identity[-1]}"

    def check(self) -> None:
        """CheckpointError unless it has the content that it had at first."""
        if not self._is_lost and self._found() == self._opened.identity:
            return
        self._is_lost = True
        opened, was = self._open(), self._opened
        if opened.size != was.size or opened.samples != was.samples:
            sizes = f"{opened.size:,} bytes, expected {was.size:,}"
            what = sizes if opened.size != was.size else "its weights are others"
            raise CheckpointError(f"{self.path}: has changed since the model was loaded ({what}): {BACK}")
        self._opened, self._is_lost = opened, False

    def read(self, into: memoryview, offset: int) -> None:
        """Fill memory with the bytes from `offset` on; CheckpointError if they are not all there."""
        opened, done = self._opened, 0
        while done < into.nbytes:
            try:
                count = os.preadv(opened.fd, [into[done:]], offset + done)
            except OSError as error:
                raise self._lost(error) from None
            if not count:
                self._is_lost = True
                end = offset + into.nbytes
                raise CheckpointError(f"{self.path}: ends before byte {end} of its experts' weights: {BACK}")
            done += count

    def _found(self) -> tuple[int, ...]:
        try:
            return _identity(os.stat(self.path))
        except OSError as error:
            raise self._lost(error) from None

    def _open(self) -> "_OpenFile":
        try:
            return _OpenFile(self.path)
        except OSError as error:
            raise self._lost(error) from None

    def _lost(self, error: OSError) -> CheckpointError:
        self._is_lost = True
        return CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}: {BACK}")


class _OpenFile:
    """What a path named when it was opened, until nobody has this: a thread may still be reading it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.fd)
        status = os.fstat(self.fd)
        self.size, self.identity = status.st_size, _identity(status)
        self.samples = _sampled(self.fd, self.size)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sampled(fd: int, size: int) -> str:
    """A digest of some bytes all over a file."""
    digest = hashlib.sha256()
    last = max(size - SAMPLE, 0)
    for place in sorted({last * i // SAMPLES for i in range(SAMPLES + 1)}):
        digest.update(os.pread(fd, SAMPLE, place))
    return digest.hexdigest()
