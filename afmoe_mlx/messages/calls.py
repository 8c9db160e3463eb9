"""The deltas of an answer, and what makes them of a text in which a format finds calls."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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

    Until a call of an offered tool has begun, what was read is content, unless it turns out to be the marks before that
    call. From then on it belongs to the call, until `end`.
    """

    def __init__(self, text: Incoming, schemas: Schemas | None) -> None:
        self._text, self._schemas = text, schemas
        self._deltas: list[Delta] = []
        self._count = 0
        self._names: set[str] = set()  # of arguments, given one by one
        self._reads: Literal["content", "arguments", "held"] = "content"
        """What is being read is; held: it may turn out to be marks."""
        self.is_open = False
        """Whether a call of an offered tool has begun and not ended."""

    def schema(self, name: str) -> Mapping[str, Any]:
        """The schema of a tool's arguments, {} if it is not known."""
        return (self._schemas or {}).get(name, {})

    def mark(self) -> None:
        """What is read from here on may be the marks before a call."""
        self.flush()
        self._reads = "held"

    def begin(self, name: str) -> None:
        """A call's name is known, what was read since `mark` were marks; one that is not offered stays content."""
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
            self._reads = "arguments"

    def hold(self) -> None:
        """What is read from here on are no longer arguments, but marks."""
        self.flush()
        if self.is_open:
            self._reads = "held"

    def raw(self) -> None:
        """What has been held, and what is read from here on, are arguments as they were written."""
        self._reads = "arguments"

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
            self.drop()
            self._deltas.append(CallEnd(self._count, error))
            self._count += 1
            self._reads, self.is_open = "held", False

    def content(self) -> None:
        """What has been held, and what is read from here on, is the answer's own text."""
        self._reads = "content"
        self.flush()

    def drop(self) -> None:
        """What has been held were marks."""
        self.flush()
        self._text.claim()

    def flush(self) -> None:
        """Claim what has been read, unless it is held."""
        if self._reads == "arguments":
            self._add(self._text.claim())
        elif self._reads == "content" and (text := self._text.claim()):
            self._deltas.append(ContentDelta(text))

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
