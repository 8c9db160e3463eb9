"""The chat's data folder, and files written beside and renamed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afmoe_mlx.durable import sync


def data_folder() -> Path:
    """Where this user's data is kept, by the habits of the system; it may have to be made yet."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():
        base = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
    return base / "afmoe-mlx"


def private_folder(path: Path) -> Path:
    """A folder that its owner alone may read, made if it is not there; OSError if it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@contextmanager
def beside(path: Path, *, mode: int = 0o666) -> Iterator[int]:
    """A descriptor of a new file that takes the place of `path` if all goes well, and is gone if not."""
    partial = path.with_name(f".{path.name}.{os.urandom(8).hex()}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, mode)
    try:
        yield descriptor
        sync(descriptor)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)
