"""fsync of files and folders, for what must be there after a power cut."""

import os
from contextlib import suppress
from pathlib import Path


def sync(descriptor: int) -> None:
    """Wait until what was written to an open file is on the disk."""
    try:
        from fcntl import F_FULLFSYNC, fcntl  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        os.fsync(descriptor)
        return
    try:
        fcntl(descriptor, F_FULLFSYNC)  # macOS: fsync alone leaves it in the drive's memory
    except OSError:
        os.fsync(descriptor)  # a file system that has no such thing


def sync_file(path: Path) -> None:
    """`sync` of a closed file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk, where the system can."""
    with suppress(OSError):
        sync_file(path)
