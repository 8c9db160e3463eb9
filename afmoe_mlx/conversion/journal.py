"""The journal of a conversion: its finished tensors, so that a run that was killed is continued."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..durable import sync, sync_file

VERSION = 1


class Journal:
    """A file with what is being made in its first line, and one for each finished tensor with its checksum.

    A line stands there only once its tensor is safe on disk.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        """identity: of all that the result depends on, by what it is called to a user."""
        self.path = path
        self.finished: dict[str, int] = {}
        """CRC-32 of each finished tensor's bytes."""
        self._head = {"version": str(VERSION), **identity}
        head, finished = self._read()
        self.differs = [key for key in self._head if head is not None and head.get(key) != self._head[key]]
        """What the journal there is has otherwise; nothing of it is used then."""
        self.continues = head is not None and not self.differs
        """Whether there is a journal of the same."""
        if self.continues:
            self.finished = finished

    def _read(self) -> tuple[dict[str, str] | None, dict[str, int]]:
        """The first line and the finished tensors; of a file that makes no sense nothing."""
        try:
            text = self.path.read_bytes()
            # a line that was being written when its process died does not count
            head, *lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
            return dict(head), {str(line["tensor"]): int(line["crc32"]) for line in lines}
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None, {}

    def begin(self, keep: Iterable[str]) -> None:
        """Write the journal anew, with those of the finished tensors that are to be trusted."""
        self.finished = {name: self.finished[name] for name in keep}
        beside = self.path.with_suffix(".new")
        beside.write_text(_line(self._head) + "".join(_finished(*entry) for entry in self.finished.items()))
        sync_file(beside)
        beside.replace(self.path)

    def add(self, checksums: dict[str, int]) -> None:
        """Note tensors as finished; they are safe on disk."""
        with self.path.open("a") as file:
            file.write("".join(_finished(*entry) for entry in checksums.items()))
            file.flush()
            sync(file.fileno())
        self.finished = self.finished | checksums  # another one: threads read it


def _finished(tensor: str, crc32: int) -> str:
    return _line({"tensor": tensor, "crc32": crc32})


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value) + "\n"
