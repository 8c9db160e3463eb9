"""`Parts`: an answer as a sequence of texts, reasoning and calls, each with its beginning and its end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..messages import ArgumentsDelta, CallEnd, CallStart, ContentDelta, Delta, ReasoningDelta

Kind = Literal["reasoning", "text", "call"]


@dataclass
class Part:
    """A run of an answer that is of one kind."""

    index: int
    """Among the answer's parts."""
    kind: Kind
    name: str = ""
    """Of the tool that is called."""
    text: str = ""
    """So far; of a call its arguments: JSON, or what was written in its place."""


@dataclass(frozen=True)
class Begin:
    """A part begins."""

    part: Part


@dataclass(frozen=True)
class More:
    """Some text more of a part, which has it already."""

    part: Part
    text: str


@dataclass(frozen=True)
class End:
    """A part is whole."""

    part: Part


Step = Begin | More | End


class Parts:
    """Tells the parts that deltas make, one after the other. Text or reasoning that is only white space is none."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._open: Part | None = None
        self._kind: Kind | None = None  # of what came last
        self._blank = ""  # of that kind, as long as it is white space

    def take(self, deltas: Sequence[Delta]) -> Iterator[Step]:
        """What the next deltas make."""
        for delta in deltas:
            match delta:
                case ContentDelta(text):
                    yield from self._run("text", text)
                case ReasoningDelta(text):
                    yield from self._run("reasoning", text)
                case CallStart(_, name):
                    yield from self.finish()
                    yield from self._begin("call", name)
                case ArgumentsDelta(_, text):
                    yield from self._more(self.parts[-1], text)
                case CallEnd():
                    yield from self.finish()

    def finish(self) -> Iterator[Step]:
        """The end of the part that is open, if one is."""
        part, self._open, self._kind, self._blank = self._open, None, None, ""
        if part is not None:
            yield End(part)

    def _run(self, kind: Kind, text: str) -> Iterator[Step]:
        if kind != self._kind:
            yield from self.finish()
            self._kind = kind
        if self._open is None:
            self._blank += text
            if not self._blank.strip():
                return
            text = self._blank
            yield from self._begin(kind)
        yield from self._more(self.parts[-1], text)

    def _begin(self, kind: Kind, name: str = "") -> Iterator[Step]:
        self._open, self._kind = Part(len(self.parts), kind, name), kind
        self.parts.append(self._open)
        yield Begin(self._open)

    def _more(self, part: Part, text: str) -> Iterator[Step]:
        part.text += text
        yield More(part, text)
