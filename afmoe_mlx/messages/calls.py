"""The deltas of an answer, and what makes them of a text in which a format finds calls."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .incoming import Incoming


@dataclass(frozen=True)
class ContentDelta:
    """Text of the answer proper."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """Text of the reasoning."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A tool is called: `index` counts the answer's calls, from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """Text of a call's arguments, JSON unless the call is malformed."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """No more comes of a call. error: why it is malformed, None if it is not."""

    index: int
    error: str | None = None


Delta = ContentDelta | ReasoningDelta | CallStart | ArgumentsDelta | CallEnd

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each offered tool's arguments, by the tool's name."""

Written = tuple[str, Mapping[str, Any] | str]
"""A call to be written: a tool's name, and its arguments, or what stands in their place in a malformed one."""


class Calls:
    """Claims a text for content and calls, as a format's reader tells it what it has found.

    Until a call of an offered tool has begun, what was read is content, unless `begin` takes it for the marks before
    that call. From then on it belongs to the call, until `end`.
    """

    def __init__(self, text: Incoming, schemas: Schemas | None) -> None:
        self._text, self._schemas = text, schemas
        self._deltas: list[Delta] = []
        self._count = 0
        self._names: set[str] = set()  # of arguments, given one by one
        self.is_open = False
        """Whether a call of an offered tool has begun and not ended."""
        self.is_content = True
        """Whether what is read is the answer's own text."""
        self._is_streaming = False  # whether what is read is arguments as they are

    def schema(self, name: str) -> Mapping[str, Any]:
        """The schema of a tool's arguments, {} if it is not known."""
        return (self._schemas or {}).get(name, {})

    def mark(self) -> None:
        """What is read from here on may be the marks before a call."""
        self.flush()
        self.is_content = False

    def begin(self, name: str) -> None:
        """A call's name is known; one that is not offered stays content."""
        self._names.clear()
        if self._schemas is not None and name not in self._schemas:
            self.content()
            return
        self._text.claim()
        self.is_open = True
        self._deltas.append(CallStart(self._count, name))

    def stream(self) -> None:
        """What is read from here on are arguments, JSON already; what was read before it were marks."""
        if self.is_open:
            self._text.claim()
            self._is_streaming = True

    def hold(self) -> None:
        """What is read from here on may be marks again."""
        self.flush()
        self._is_streaming = False

    def raw(self) -> None:
        """What has been held, and what is read from here on, are arguments as they were written."""
        self._is_streaming = True

    def arguments(self, text: str) -> None:
        """All arguments at once, as JSON, in place of what has been held; nothing if there are none."""
        if self.is_open and text:
            self._text.claim()
            self._add(text)

    def argument(self, name: str, value: str) -> None:
        """The next of the arguments, its value as JSON, in place of all that was read for it."""
        if self.is_open:
            self._text.claim()
            self._add(f"{', ' if self._names else '{'}{json_text(name)}: {value}")
        self._names.add(name)

    def has(self, name: str) -> bool:
        """Whether an argument of this name has been given to this call."""
        return name in self._names

    def close(self) -> None:
        """The last of the arguments has been given: the object they make ends."""
        if self.is_open:
            self._add("}" if self._names else "{}")

    def end(self, error: str | None = None) -> None:
        """The call ends with what was read."""
        if self.is_open:
            self.flush()
            self._text.claim()
            self._deltas.append(CallEnd(self._count, error))
            self._count += 1
        self.is_open = self._is_streaming = False

    def content(self) -> None:
        """What has been held, and what is read from here on, is the answer's own text."""
        self.is_content = True
        self.flush()

    def drop(self) -> None:
        """What has been held were marks, unless it stands in content."""
        self.flush()
        self._text.claim()

    def flush(self) -> None:
        """Claim what has been read, unless it is held."""
        if self.is_content and (text := self._text.claim()):
            self._deltas.append(ContentDelta(text))
        elif self._is_streaming:
            self._add(self._text.claim())

    def take(self) -> list[Delta]:
        """The deltas that have come since the last time."""
        self.flush()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _add(self, text: str) -> None:
        if text:
            self._deltas.append(ArgumentsDelta(self._count, text))


def json_text(value: Any) -> str:
    """A value as JSON, in ASCII if it holds halves of characters, which no UTF-8 takes. ValueError if it cannot be."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() or _is_utf8(text) else json.dumps(value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
