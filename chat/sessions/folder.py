"""The folder of saved sessions: listed, created, opened by name."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from afmoe_mlx.errors import SessionError
from afmoe_mlx.terminal import printable

from ..paths import data_folder, private_folder
from .log import new_state, replay
from .session import SUFFIX, Session, checked_name, create_session, open_session

FIRST_WORDS = 60  # characters of a conversation's first message in a list


@dataclass(frozen=True)
class SessionInfo:
    """One line of a list of sessions. Names come from files: pass them through `printable` to show them."""

    name: str
    path: Path
    modified: float
    """Seconds since the epoch."""
    turns: int
    first_words: str
    """The beginning of the first message, printable, on one line."""
    model: str
    trouble: str = ""
    """Why it cannot be opened."""


class SessionFolder:
    """All sessions of a user."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = data_folder() / "sessions" if path is None else path

    def names(self) -> Sequence[str]:
        """The names of all sessions, the one last written to first."""
        return [path.name.removesuffix(SUFFIX) for _, path in self._files()]

    def list(self) -> Sequence[SessionInfo]:
        """All sessions, the one last written to first; those that are damaged too."""
        return [_info(path, modified) for modified, path in self._files()]

    def create(self, name: str | None = None, *, words: str = "", model: str = "") -> Session:
        """A new session by this name, or named by today's date and the first of `words`, the first message.

        model: what the user calls it. SessionError if the name is taken, or the folder cannot be written to.
        """
        stem = f"{datetime.now():%Y-%m-%d}-{slug(words) or 'chat'}" if name is None else checked_name(name)
        try:
            private_folder(self.path)
            for count in range(1, 10000):
                path = self.path / f"{stem}{f'-{count}' if count > 1 else ''}{SUFFIX}"
                with suppress(FileExistsError):
                    return create_session(path, new_state(model))
                if name is not None:
                    break
        except OSError as error:
            raise SessionError(f"{_shown(self.path)}: cannot be written: {error.strerror or error}") from None
        raise SessionError(f"there is a session {printable(stem)} already: choose another name")

    def open(self, name: str | None = None) -> Session:
        """The session of a name, or of the only one that begins so; None: the one last written to.

        SessionError if there is none, with the nearest; if another chat has it open; or if it cannot be read.
        """
        names = self.names()
        if not names:
            raise SessionError("there are no saved chats yet")
        return open_session(self.path / (self._found(name, names) + SUFFIX))

    def _found(self, name: str | None, names: Sequence[str]) -> str:
        if name is None:
            return names[0]
        if name in names:
            return name
        begun = [known for known in names if name and known.startswith(name)]
        if len(begun) == 1:
            return begun[0]
        if begun:
            raise SessionError(f"{printable(name)} begins {len(begun)} sessions: {_few(begun)}: write more of the name")
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {printable(near[0])}?" if near else f"there are {_few(names)}"
        raise SessionError(f"there is no session {printable(name)}: {hint}")

    def _files(self) -> Sequence[tuple[float, Path]]:
        found = []
        for path in self.path.glob(f"*{SUFFIX}") if self.path.is_dir() else ():
            with suppress(OSError):
                if path.is_file() and not path.name.startswith(".") and path.stat().st_size:
                    found.append((path.stat().st_mtime, path))
        return sorted(found, key=lambda file: (-file[0], file[1].name))


def prefix_directory(directory: str | None, *, wanted: bool | None, is_saved: bool) -> str | None:
    """Where prefixes are kept on disk: with saved sessions unless --no-disk-cache says no, so that they come back fast.

    directory: what --prompt-cache-dir said; wanted: what --disk-cache or --no-disk-cache did, None for neither.
    """
    from afmoe_mlx.command_line.prompt_cache import disk_directory

    return disk_directory(directory, wanted=True if wanted is None and is_saved else wanted)


def slug(text: str) -> str:
    """The first words of a text as a name: letters, digits and hyphens."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text[:400]).casefold())
    kept = ""
    for word in words[:8]:
        longer = f"{kept}-{word}" if kept else word
        if len(longer) > 40:
            break
        kept = longer
    return kept or "".join(words[:1])[:40]


def _info(path: Path, modified: float) -> SessionInfo:
    name = path.name.removesuffix(SUFFIX)
    try:
        state = replay(path.read_bytes(), name).state
    except SessionError as error:
        return SessionInfo(name, path, modified, 0, "", "", str(error))
    except OSError as error:
        return SessionInfo(name, path, modified, 0, "", "", f"cannot be read: {error.strerror or error}")
    asked = [message["content"] for message in state.messages if message["role"] == "user"]
    words = printable(" ".join(asked[0][: 4 * FIRST_WORDS].split())) if asked else ""
    return SessionInfo(name, path, modified, len(asked), words[:FIRST_WORDS], state.model)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:5])) + (", …" if len(names) > 5 else "")


def _shown(path: Path) -> str:
    return printable(str(path))
