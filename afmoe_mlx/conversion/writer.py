"""Writing the shards of a plan: headers first, then each tensor in its place as soon as it is computed."""

import os
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..durable import sync
from .journal import Journal
from .plan import Plan, PlannedTensor, Shard

# Bytes that wait to be written at most, one array aside.
QUEUE_BYTES = 16 << 20
# Bytes, and seconds, after which what is written is made safe and noted as finished.
SYNC_BYTES = 256 << 20
SYNC_SECONDS = 5.0
READ_BYTES = 4 << 20


def trusted(folder: Path, plan: Plan, journal: Journal) -> Iterator[tuple[PlannedTensor, bool]]:
    """The tensors that a journal has as finished, and whether a folder's files still hold them."""
    whole = {shard.name for shard in plan.shards if _has_header(folder / shard.name, shard)}
    for tensor in plan.tensors.values():
        crc = journal.finished.get(tensor.name)
        if crc is not None:
            yield tensor, tensor.file in whole and _checksum(folder / tensor.file, tensor) == crc


def _has_header(path: Path, shard: Shard) -> bool:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == shard.nbytes and file.read(len(shard.header)) == shard.header
    except FileNotFoundError:
        return False


def _checksum(path: Path, tensor: PlannedTensor) -> int:
    crc, left = 0, tensor.nbytes
    with path.open("rb", buffering=0) as file:
        file.seek(tensor.begin)
        while left and (block := file.read(min(left, READ_BYTES))):
            crc = zlib.crc32(block, crc)
            left -= len(block)
    return crc


class Writer:
    """Writes tensors in a thread, in slices one after the other, and notes in a journal those that are safe on disk.

    An OSError of the thread is raised by the next call.
    """

    def __init__(self, folder: Path, plan: Plan, journal: Journal) -> None:
        self._plan = plan
        self._journal = journal
        self._files: dict[str, int] = {}
        self._begun: dict[str, tuple[int, int]] = {}
        """Bytes written of a tensor that is not whole, and their checksum."""
        self._unsynced: dict[str, int] = {}
        self._unsynced_bytes = 0
        self._synced_at = time.monotonic()
        self._sync: Future[None] | None = None
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._waiting_bytes = 0
        self._thread = ThreadPoolExecutor(1, "afmoe-mlx write")
        self._sync_thread = ThreadPoolExecutor(1, "afmoe-mlx sync")
        try:
            for shard in plan.shards:
                self._files[shard.name] = _prepare(folder / shard.name, shard)
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> set[str]:
        """The tensors that are whole and safe on disk."""
        return set(self._journal.finished)

    def write(self, name: str, data: memoryview) -> None:
        """Write the next bytes of a tensor; waits while much else is waiting to be written."""
        while self._waiting and (self._waiting[0][0].done() or self._waiting_bytes + data.nbytes > QUEUE_BYTES):
            future, size = self._waiting.popleft()
            self._waiting_bytes -= size
            future.result()
        self._waiting.append((self._thread.submit(self._write, self._plan.tensors[name], data), data.nbytes))
        self._waiting_bytes += data.nbytes

    def _write(self, tensor: PlannedTensor, data: memoryview) -> None:
        done, crc = self._begun.pop(tensor.name, (0, 0))
        crc = zlib.crc32(data, crc)
        _write_all(self._files[tensor.file], data, tensor.begin + done)
        done += data.nbytes
        assert done <= tensor.nbytes, f"{tensor.name} has more than its {tensor.nbytes} bytes"
        if done < tensor.nbytes:
            self._begun[tensor.name] = done, crc
            return
        self._unsynced[tensor.name] = crc
        self._unsynced_bytes += tensor.nbytes
        is_due = self._unsynced_bytes >= SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_SECONDS
        if is_due and (self._sync is None or self._sync.done()):
            self._start_sync()

    def _start_sync(self) -> None:
        if self._sync is not None:
            self._sync.result()
        checksums, self._unsynced, self._unsynced_bytes = self._unsynced, {}, 0
        self._synced_at = time.monotonic()
        self._sync = self._sync_thread.submit(self._note, checksums)

    def _note(self, checksums: dict[str, int]) -> None:
        """Make tensors safe on disk, and then note them."""
        for file in {self._plan.tensors[name].file for name in checksums}:
            sync(self._files[file])
        self._journal.add(checksums)

    def flush(self) -> None:
        """Wait until all that was written is safe on disk."""
        while self._waiting:
            self._waiting.popleft()[0].result()
        self._waiting_bytes = 0
        self._thread.submit(self._start_sync).result()
        assert self._sync is not None
        self._sync.result()

    def close(self) -> None:
        """Note what was written whole if that is still possible, and leave the files."""
        try:
            for future, _ in self._waiting:
                with suppress(OSError):
                    future.result()
            self._waiting.clear()
            with suppress(OSError):
                self.flush()
        finally:
            self._thread.shutdown()
            self._sync_thread.shutdown()
            for file in self._files.values():
                os.close(file)


def _prepare(path: Path, shard: Shard) -> int:
    """Open a file for writing, made new with its header unless it has that."""
    is_there = _has_header(path, shard)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if not is_there:
        os.ftruncate(file, 0)
        os.ftruncate(file, shard.nbytes)
        _write_all(file, memoryview(shard.header), 0)
    return file


def _write_all(file: int, data: memoryview, place: int) -> None:
    while data:
        count = os.pwrite(file, data, place)
        data, place = data[count:], place + count
