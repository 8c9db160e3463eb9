"""Telling reasoning (`<think>…</think>`) from the answer, in a whole text or as it streams."""

from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Part:
    """A piece of an answer: reasoning or the answer proper."""

    kind: Literal["thinking", "answer"]
    text: str


class ThinkingSplitter:
    """Splits what streams from a model at `<think>` and `</think>`, wherever the tags are cut.

    Reasoning stands before the answer alone: a tag in the middle of an answer is the answer's own text. `inside`:
    the prompt opened the reasoning already, see `opens_thinking`.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._state: Literal["start", "thinking", "between", "answer"] = "thinking" if inside else "start"
        self._held = ""  # may be the beginning of a tag

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._state == "thinking"

    def feed(self, text: str) -> list[Part]:
        """What became certain with `text`; neighbours differ in kind, tags are left out."""
        self._held += text
        parts: list[Part] = []
        if self._state == "start":
            self._start(parts)
        if self._state == "thinking":
            self._think(parts)
        if self._state == "between":
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "between"
        if self._state == "answer" and self._held:
            parts.append(Part("answer", self._held))
            self._held = ""
        return parts

    def finish(self) -> list[Part]:
        """What was held back, at the end of the stream."""
        kind: Literal["thinking", "answer"] = "thinking" if self.thinking else "answer"
        rest, self._held = self._held, ""
        return [Part(kind, rest)] if rest else []

    def _start(self, parts: list[Part]) -> None:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._state, self._held = "thinking", text.removeprefix(OPEN)
        elif not OPEN.startswith(text):
            self._state = "answer"

    def _think(self, parts: list[Part]) -> None:
        thought, tag, rest = self._held.partition(CLOSE)
        if tag:
            self._state, self._held = "between", rest
        else:
            held = next((n for n in range(len(CLOSE) - 1, 0, -1) if thought.endswith(CLOSE[:n])), 0)
            thought, self._held = thought[: len(thought) - held], thought[len(thought) - held :]
        if thought:
            parts.append(Part("thinking", thought))


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends inside a reasoning that its template opened, so that the answer begins there."""
    return prompt.rstrip().endswith(OPEN)


def split_thinking(content: str) -> tuple[str, str]:
    """(reasoning, answer) of a whole message; the reasoning is "" if there is none.

    A message whose `<think>` was written by the template begins inside it and has the closing tag alone.
    """
    before, tag, _ = content.partition(CLOSE)
    splitter = ThinkingSplitter(inside=bool(tag) and OPEN not in before)
    parts = [*splitter.feed(content), *splitter.finish()]
    thought, answer = ("".join(part.text for part in parts if part.kind == kind) for kind in ("thinking", "answer"))
    return thought, answer
