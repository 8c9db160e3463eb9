"""The history of what was typed: a private file of JSON Lines."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..paths import beside, private_folder

KEPT = 1000  # entries; the file is cut back to so many when it holds twice as many


class History:
    """Entries, the newest last. Without a path, and where the file cannot be used, they are kept for this run alone.

    What begins with a space is not kept, as in shells, nor what was typed just before. Several programs may append to
    one file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._entries = list(self._read())
        if len(self._entries) > 2 * KEPT:
            self._entries = self._entries[-KEPT:]
            self._cut()

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
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_line(text))
        except OSError:
            self.path = None  # a history that cannot be written must not stand in the way of a chat

    def _read(self) -> Iterator[str]:
        if self.path is None:
            return
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # written in part
                continue
            if isinstance(entry, str):
                yield entry

    def _cut(self) -> None:
        if self.path is None:
            return
        try:
            with beside(self.path, mode=0o600) as descriptor:
                os.write(descriptor, b"".join(_line(entry) for entry in self._entries))
        except OSError:
            self.path = None


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"
