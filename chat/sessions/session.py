"""`Session`: one saved conversation, a file held open and locked, to which records are added."""

import errno
import fcntl
import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afmoe_mlx.durable import sync, sync_folder
from afmoe_mlx.errors import SessionError
from afmoe_mlx.messages.prompts import Message
from afmoe_mlx.terminal import printable

from ..paths import beside, private_folder
from .log import SessionState, changes, encode, plain_settings, replay, whole

if TYPE_CHECKING:
    from ..conversation.conversation import Conversation

SUFFIX = ".jsonl"
ASIDE = ".old"  # of the file beside it with all that was ever taken out of it
MAX_NAME = 80  # characters; a file's name has 255 bytes at most

# Bytes from which a file is rewritten when opened, if most of it has been replaced since.
LONG = 1 << 20

# Of a file that is read-only: on a disk that is mounted so, or of another user.
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Session:
    """One conversation's file, held open and locked until it is closed.

    Nobody else can write to it meanwhile. warnings: what of it could not be read, a line each, for the user to see.
    """

    def __init__(
        self, path: Path, descriptor: int, state: SessionState, warnings: list[str], refusal: OSError | None = None
    ) -> None:
        self.path, self.warnings = path, warnings
        self._descriptor, self._state = descriptor, state
        self._refusal = refusal  # why it is read-only

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def model(self) -> str:
        """The model that answered last, by the name the user gave."""
        return self._state.model

    @property
    def settings(self) -> Mapping[str, Any]:
        """The options of the last answers, those that JSON can hold."""
        return self._state.settings

    @property
    def messages(self) -> list[Message]:
        """The conversation, the system message first if there is one: what `Conversation.restore` takes."""
        system: list[Message] = [{"role": "system", "content": self._state.system}] if self._state.system else []
        return [*system, *(dict(message) for message in self._state.messages)]

    def save(self, conversation: "Conversation", *, model: str | None = None) -> None:
        """Write what has changed, on the disk when this returns; nothing if nothing has.

        To be called when an answer begins, so that the message is safe while it is being answered, when it ends, and
        after whatever else changes the conversation. model: its name, if it may have changed. SessionError if it cannot
        be written: the file is then as it was.
        """
        messages = conversation.current_messages
        system = [message["content"] for message in messages[:1] if message["role"] == "system"]
        after = replace(
            self._state,
            model=self._state.model if model is None else model,
            settings=plain_settings(conversation.options),
            system=system[0] if system else None,
            messages=tuple(dict(message) for message in messages[len(system) :]),
        )
        try:
            if records := changes(self._state, after):
                if self._refusal is not None:
                    raise self._refusal
                if self._is_gone():
                    self._move(self.path, after)
                else:
                    _append(self._descriptor, b"".join(map(encode, records)))
        except FileExistsError:
            raise SessionError(f"{self._shown} is another chat's now: give this one a name of its own") from None
        except OSError as error:
            raise SessionError(f"{self._shown}: cannot be written: {error.strerror or error}") from None
        self._state = after

    def rename(self, name: str) -> None:
        """Give the session another name; SessionError if it is taken, or none that a file may have."""
        path = self.path.with_name(checked_name(name) + SUFFIX)
        if path == self.path:
            return
        try:
            if self._refusal is None and not self._is_gone():
                _rename(self.path, path)
                self.path = path
            else:
                self._move(path, self._state)
        except FileExistsError:
            raise SessionError(f"there is a session {printable(name)} already: choose another name") from None
        except OSError as error:
            raise SessionError(f"{printable(str(path))}: cannot be written: {error.strerror or error}") from None

    def _move(self, path: Path, state: SessionState) -> None:
        """Write all to a new file and go on with that one."""
        private_folder(path.parent)  # it may have been removed meanwhile
        moved = create_session(path, state)
        self.close()
        self.path, self._descriptor, self._refusal = path, moved._descriptor, None

    def close(self) -> None:
        """Let others have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_gone(self) -> bool:
        """Whether the file has been deleted, or another put in its place."""
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return True

    @property
    def _shown(self) -> str:
        return printable(str(self.path))


def checked_name(name: str) -> str:
    """A session's name as it may stand for a file; SessionError for any other."""
    name = unicodedata.normalize("NFC", name.strip())
    trouble = (
        "is empty" if not name else
        f"has {len(name)} characters: expected {MAX_NAME} at most" if len(name) > MAX_NAME else
        "has a separator of folders in it" if re.search(r"[/\\:]", name) else
        f"begins with {name[0]}" if name[0] in ".-~" else
        "has control characters in it" if printable(name) != name or not name.isprintable() else
        ""
    )  # fmt: skip
    if trouble or len(name.encode()) > 200:
        raise SessionError(f"the name {name!r} {trouble or 'is too long'}: choose another")
    return name


def create_session(path: Path, state: SessionState) -> Session:
    """A session in a file that is not there yet; FileExistsError if it is, OSError if it cannot be written."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, path)
        _append(descriptor, b"".join(map(encode, whole(state))))
        sync_folder(path.parent)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return Session(path, descriptor, state, [])


def open_session(path: Path) -> Session:
    """The session of a file; SessionError if another chat has it open, or it cannot be read."""
    refusal = None
    try:
        try:
            descriptor = _locked(path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            descriptor, refusal = _locked(path, os.O_RDONLY), error
        try:
            content = _read(descriptor)
            replayed = replay(content, path.name.removesuffix(SUFFIX))
            if refusal is None:
                try:
                    _end_line(path, descriptor, content, replayed.end)
                except OSError as error:
                    refusal = error
            if refusal is not None:
                found = f"it cannot be written to ({refusal.strerror}): what is said from here on is not saved"
                return Session(path, descriptor, replayed.state, [*replayed.warnings, found], refusal)
            compact = sum(len(encode(record)) for record in whole(replayed.state))
            if len(content) > LONG and len(content) > 2 * compact and not replayed.warnings:
                with suppress(OSError):  # a full disk: the long file serves as well
                    _set_aside(path, content)
                    descriptor = _replaced(path, descriptor, replayed.state)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise SessionError(f"{printable(str(path))}: cannot be opened: {error.strerror or error}") from None
    return Session(path, descriptor, replayed.state, replayed.warnings)


def _end_line(path: Path, descriptor: int, content: bytes, end: int) -> None:
    """Leave a session's file where a line can be added; what was cut off after its `end` goes to a file beside it."""
    if (tail := content[end:]).strip():
        _set_aside(path, tail)
        os.ftruncate(descriptor, end)
    elif not content.endswith(b"\n"):
        _append(descriptor, b"\n")


def _set_aside(path: Path, lines: bytes) -> None:
    """Keep what a session's file is about to lose."""
    aside = _aside(path)
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        _append(descriptor, lines.removesuffix(b"\n") + b"\n")
    finally:
        if not os.fstat(descriptor).st_size:
            aside.unlink()
        os.close(descriptor)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ASIDE)


def _rename(before: Path, after: Path) -> None:
    """Give a file a name that is free, or that the disk takes for the one it has; FileExistsError for any other."""
    try:
        os.close(os.open(after, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))  # nobody else takes it
    except FileExistsError:
        if not os.path.samefile(before, after):  # as on a disk that does not tell upper from lower case
            raise
    before.replace(after)
    if _aside(before).exists() and not _aside(after).exists():
        _aside(before).rename(_aside(after))
    sync_folder(after.parent)


def _locked(path: Path, flags: int) -> int:
    """A descriptor of the file, which this process alone may write to."""
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            _lock(descriptor, path)
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # and not rewritten in between
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        name = printable(path.name.removesuffix(SUFFIX))
        raise SessionError(f"{name} is open in a chat already: leave that one first, or choose another") from None
    except OSError:
        pass  # a file system without locks


def _replaced(path: Path, descriptor: int, state: SessionState) -> int:
    """Write a session's file anew; the descriptor that takes the place of the old one."""
    with beside(path, mode=0o600) as new:
        _lock(new, path)
        _append(new, b"".join(map(encode, whole(state))))
        kept = os.dup(new)  # which holds the lock too
    sync_folder(path.parent)
    os.close(descriptor)
    return kept


def _append(descriptor: int, data: bytes) -> None:
    """Add to a file, and wait for the disk; if that fails, the file is as it was."""
    before = os.fstat(descriptor).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        sync(descriptor)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


def _read(descriptor: int) -> bytes:
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read()
