"""The prefix cache on disk: a file for each block, in a folder for each model, named by hashes alone.

Files are written by a thread of its own, behind the answer. What cannot be read or written is counted, and costs
nothing but the work it would have saved.
"""

import errno
import os
import re
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .block_file import BlockFile, DamagedFileError, describe, encode, octets, write
from .blocks import Block, Columns, Layout

if TYPE_CHECKING:
    from concurrent.futures import Future

SUFFIX = ".block"

# Names that this program gives: a model's folder, a block's file, and one that is being written.
FOLDER = re.compile("[0-9a-f]{32}")
FILE = re.compile("[0-9a-f]{64}" + re.escape(SUFFIX))
PARTIAL = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.partial")

# Bytes on their way to the disk, above which blocks are not written until their sequence is used again.
MAX_PENDING = 1 << 30
# Seconds after which a file half written was left behind by a process that is gone.
ABANDONED = 3600


def default_directory() -> Path:
    """Where prefixes are kept for this user, by the habits of the system."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base / "afmoe-mlx" / "prefixes"


@dataclass(frozen=True)
class StoredFile:
    """A block's file: its path, bytes and when it was last used, in nanoseconds."""

    path: Path
    nbytes: int
    used: int


def stored_files(directory: Path) -> list[StoredFile]:
    """The blocks of all models in a directory, the least recently used first; OSError if it cannot be read."""
    return sorted(_files(directory, FILE), key=lambda file: file.used)


def _files(directory: Path, name: re.Pattern[str]) -> Iterator[StoredFile]:
    """The files with such names in a directory's folders of models; what else is there is none of ours."""
    for path in directory.glob("*/*"):
        if FOLDER.fullmatch(path.parent.name) and name.fullmatch(path.name):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield StoredFile(path, status.st_size, status.st_mtime_ns)


def trim(directory: Path, max_bytes: int) -> list[StoredFile]:
    """Delete the least recently used blocks of a directory until `max_bytes` are left; those deleted."""
    files = stored_files(directory)
    total, deleted = sum(file.nbytes for file in files), []
    for file in files:
        if total <= max_bytes:
            break
        file.path.unlink(missing_ok=True)
        total -= file.nbytes
        deleted.append(file)
    if max_bytes == 0:  # nothing of what was said stays, not half of it either
        for file in _files(directory, PARTIAL):
            file.path.unlink(missing_ok=True)
            deleted.append(file)
    for folder in {file.path.parent for file in deleted}:
        with suppress(OSError):  # it has others
            folder.rmdir()
    return deleted


class BlocksOnDisk:
    """The blocks of one model on disk, in a directory that other models and processes share, in at most `max_bytes`."""

    def __init__(self, directory: Path, max_bytes: int, model: bytes, layout: Layout) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.directory, self.max_bytes = directory, max_bytes
        self.model, self.layout = model.hex(), layout
        self.folder = directory / self.model[:32]
        self.damaged = self.failed = self.written = 0
        self._thread = ThreadPoolExecutor(1, "prefix-store")  # which Python lets finish before it exits
        self._pending: dict[bytes, tuple[Future[None], int]] = {}
        self._unreadable: set[bytes] = set()  # files to be written anew, which stay until that is done
        self._total: int | None = None  # bytes in the directory, as far as is known
        self._trouble: OSError | None = None
        self._has_warned = False

    def find(self, block: Block) -> int | None:
        """How many recent columns the block's file has; None without a file in good order."""
        file = None if block.key in self._unreadable else self._open(block)
        return None if file is None else file.header["held"]

    def read(self, block: Block, part: str) -> Columns | None:
        """Columns of the "whole" or the "recent" layers; None if the file is gone or damaged."""
        file = self._open(block)
        try:
            return None if file is None else file.read(part)
        except (OSError, DamagedFileError):
            self.damaged += 1
            self._unreadable.add(block.key)
            return None

    def write(self, block: Block) -> None:
        """Write a block behind the caller's back; what it holds is copied first. Left for later when much waits."""
        self._warn()
        waiting = sum(nbytes for _, nbytes in list(self._pending.values()))
        if waiting + block.nbytes > MAX_PENDING:
            return
        assert block.whole is not None
        header = self._identity(block) | {
            "held": block.held,
            "whole": describe(block.whole),
            "recent": describe(block.recent),
        }
        parts = octets(block.whole), octets(block.recent)
        future = self._thread.submit(self._write, self._path(block), header, parts, block.depth)
        self._pending[block.key] = future, block.nbytes
        future.add_done_callback(lambda done: self._settle(block.key, done))
        block.stored = block.held
        self._unreadable.discard(block.key)

    def touch(self, chain: Sequence[Block]) -> None:
        """Say that a sequence has been used; of its blocks, the last are the first to go."""
        if paths := {self._path(block): block.depth for block in chain if block.stored is not None}:
            self._thread.submit(_touch, paths)

    def flush(self) -> None:
        """Wait until all is written."""
        self._thread.submit(lambda: None).result()
        self._warn()

    def _identity(self, block: Block) -> dict[str, object]:
        parent = block.parent.key.hex() if block.parent else ""
        return {"model": self.model, "parent": parent, "tokens": block.tokens.hex()}

    def _path(self, block: Block) -> Path:
        return self.folder / (block.key.hex() + SUFFIX)

    def _open(self, block: Block) -> BlockFile | None:
        if pending := self._pending.get(block.key):
            pending[0].result()
        try:
            file = BlockFile.open(self._path(block))
        except FileNotFoundError:
            return None
        except (OSError, DamagedFileError):
            self.damaged += 1
            return None
        if any(file.header.get(name) != value for name, value in self._identity(block).items()):
            self.damaged += 1
            return None
        if not self.layout.accepts(file.header, block):
            self.damaged += 1
            return None
        return file

    def _settle(self, key: bytes, done: "Future[None]") -> None:
        if self._pending.get(key, (None,))[0] is done:  # and not one that came after it
            del self._pending[key]

    def _write(self, path: Path, header: dict[str, object], parts: tuple[bytes, bytes], depth: int) -> None:
        content = encode(header, parts)
        try:
            size = sum(map(len, content))
            if size > self.max_bytes:
                budget = f"{self.max_bytes:,} (unless told, a tenth of what was free)"
                raise OSError(errno.ENOSPC, f"a block takes {size:,} bytes, of which it may take {budget}")
            self._make_room(size)
            write(path, content, used=_used(time.time_ns(), depth))
            self.written += 1
        except OSError as error:
            self.failed += 1
            self._trouble = error

    def _make_room(self, nbytes: int) -> None:
        """Delete old blocks when the directory is about to pass its budget; what other processes wrote counts too."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self._total is None:
            _remove_abandoned(self.folder)
            self._total = sum(file.nbytes for file in stored_files(self.directory))
        self._total += nbytes
        if self._total > self.max_bytes:
            # some more than needed, so that not every block looks through the directory
            trim(self.directory, max(0, min(self.max_bytes - nbytes, self.max_bytes * 9 // 10)))
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._total = sum(file.nbytes for file in stored_files(self.directory)) + nbytes

    def _warn(self) -> None:
        if self._trouble is not None and not self._has_warned:
            self._has_warned = True
            reason = self._trouble.strerror or self._trouble
            warnings.warn(f"{self.directory}: the prompt cache cannot be written there: {reason}", stacklevel=4)


def _used(now: int, depth: int) -> int:
    """The time to mark a block with, in nanoseconds: of blocks used together, the later ones look older."""
    return now - depth * 1000


def _touch(paths: dict[Path, int]) -> None:
    now = time.time_ns()
    for path, depth in paths.items():
        used = _used(now, depth)
        with suppress(OSError):
            os.utime(path, ns=(used, used))


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(".*.partial"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - ABANDONED:
                path.unlink()
