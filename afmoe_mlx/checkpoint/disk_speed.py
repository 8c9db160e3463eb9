"""How fast a disk gives pieces of a file as large as an expert's, to several threads at once."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .expert_source import THREADS

# Bytes of a piece, of what is read at most, and of a file that is large enough to say anything.
PIECE, MOST, LEAST = 1 << 20, 1 << 28, 1 << 25
SECONDS = 0.5


def read_speed(path: Path) -> float | None:
    """Bytes a second of reading pieces all over a file, past the system's page cache; None for a small file."""
    size = path.stat().st_size
    if size < LEAST:
        return None
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _bypass_cache(fd)
        pieces = min(size, MOST) // PIECE
        places = [(size - PIECE) * i // pieces for i in range(pieces)]
        began = time.perf_counter()

        def read(place: int) -> int:
            return len(os.pread(fd, PIECE, place)) if time.perf_counter() - began < SECONDS else 0

        with ThreadPoolExecutor(THREADS) as threads:
            done = sum(threads.map(read, places))
        return done / (time.perf_counter() - began)
    finally:
        os.close(fd)


def _bypass_cache(fd: int) -> None:
    """Have a file's bytes come from the disk."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
    elif hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
