"""The history of what was typed: a private file of JSON Lines."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..paths import private_folder

# What is gone through of the file: its last entries, in so many bytes at its end. The rest stays in it.
KEPT = 1000
KEPT_BYTES = 4 << 20


class History:
    """Entries, the newest last. Without a path, and where the file cannot be used, they are kept for this run alone.

    What begins with a space is not kept, as in shells, nor what was typed just before. Several programs may append to
    one file, and nothing is ever removed from it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._entries = list(self._read())[-KEPT:]

    @property
    def entries(self) -> list[str]:
        return self._entries

    def append(self, text: str) -> None:
        """Keep an entry."""
        if not text.strip() or text[0].isspace() or self._entries[-1:] == [text]:
            return
        self._entries.append(text)
        if self.path is None:
            return
        try:
            private_folder(self.path.parent)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "rb+", buffering=0) as file:
                file.write(_start(file.fileno()) + _line(text))
        except OSError:
            self.path = None  # a history that cannot be written must not stand in the way of a chat

    def _read(self) -> Iterator[str]:
        if self.path is None:
            return
        try:
            with self.path.open("rb") as file:
                if (rest := os.fstat(file.fileno()).st_size - KEPT_BYTES) > 0:
                    file.seek(rest)
                    file.readline()  # what is left of a line
                lines = file.read().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # written in part
                continue
            if isinstance(entry, str):
                yield entry


def _start(descriptor: int) -> bytes:
    """What an entry begins with: a new line where the one before was written in part."""
    size = os.fstat(descriptor).st_size
    return b"" if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n" else b"\n"


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"
