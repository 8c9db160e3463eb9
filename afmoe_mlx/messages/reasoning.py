"""Reasoning, `<think>…</think>`: told from the answer, whole or as it streams, and closed where it was cut off."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"

# What a template writes to begin an answer inside its reasoning, and tokens that this takes at most.
_OPENED = re.compile(rf"{OPEN}\s*\Z")
_OPENED_TOKENS = 16

# What templates call a message's reasoning that is apart from its content, and how they read it: message.thinking,
# message['thinking'], message.get("thinking"); not the variables enable_thinking and thinking.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_READS = r"\.{0}\b|(['\"]){0}\1"


@dataclass(frozen=True)
class Part:
    """A piece of an answer: reasoning or the answer proper."""

    kind: Literal["thinking", "answer"]
    text: str


class ThinkingSplitter:
    """Splits what streams from a model at `<think>` and `</think>`, wherever the tags are cut.

    Reasoning stands before the answer alone: a tag in the middle of an answer is the answer's own text. `inside`:
    the prompt opened the reasoning already, see `opened_thinking`.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._state: Literal["start", "thinking", "between", "answer"] = "thinking" if inside else "start"
        self._held = ""  # may be the beginning of a tag

    @classmethod
    def after(cls, beginning: str) -> "ThinkingSplitter":
        """One for what follows `beginning`: what of the answer the prompt holds already, which it does not give again.

        An answer that has begun otherwise than with the whole tag has no reasoning.
        """
        splitter = cls()
        splitter.feed(beginning)
        if splitter._state == "start" and beginning.strip():
            splitter._state = "answer"
        splitter._held = ""
        return splitter

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._state == "thinking"

    @property
    def may_think(self) -> bool:
        """Whether reasoning may still come: it is under way, or nothing but blanks and part of a tag has come."""
        return self._state in ("start", "thinking")

    @property
    def held(self) -> str:
        """What has come and may be the beginning of a tag, or is left out."""
        return self._held

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
            certain = len(thought) - _begun(thought)
            thought, self._held = thought[:certain], thought[certain:]
        if thought:
            parts.append(Part("thinking", thought))


def opened_thinking(prompt: str) -> str:
    """What a prompt ends with if its template opened the reasoning, "<think>\\n" for example; "" if it did not."""
    opened = _OPENED.search(prompt)
    return opened[0] if opened else ""


def opened_by(tokenizer: "Tokenizer", prompt: Sequence[int]) -> str:
    """`opened_thinking` of a prompt's token ids."""
    return opened_thinking(tokenizer.decode(prompt[-_OPENED_TOKENS:]))


def split_thinking(content: str) -> tuple[str, str]:
    """(reasoning, answer) of a whole message; the reasoning is "" if there is none.

    A message whose `<think>` was written by the template begins inside it and has the closing tag alone.
    """
    thought, answer, _ = _split(content)
    return thought, answer


def closing_of(thought: str) -> str:
    """What closes a reasoning that was cut off: the rest of a tag that has begun, or one on a line of its own."""
    if (begun := _begun(thought)) > 1:  # "<" alone may be anything
        return f"{CLOSE[begun:]}\n\n"
    return f"{CLOSE}\n\n" if thought.endswith("\n") else f"\n{CLOSE}\n\n"


def is_open(content: str) -> bool:
    """Whether a whole message was cut off inside its reasoning."""
    return _split(content)[2].thinking


def closed(content: str) -> str:
    """A whole message with its reasoning closed, if it was cut off inside."""
    return content + closing_of(content) if is_open(content) else content


def fields(content: str, field: str = "reasoning_content") -> dict[str, str]:
    """A whole message as Transformers hands it to templates: "content", and `field` with its reasoning, if any."""
    thought, answer, splitter = _split(content)
    if not thought and answer == content:
        return {"content": content}
    if splitter.thinking and (begun := _begun(thought)) > 1:
        thought = thought[:-begun]
    return {field: thought.strip("\n"), "content": answer}


def reasoning_field(template: str) -> str | None:
    """The field that a chat template reads the reasoning of messages from; None if it has their content alone."""
    return next((field for field in REASONING_FIELDS if re.search(_READS.format(field), template)), None)


def _split(content: str) -> tuple[str, str, ThinkingSplitter]:
    """Reasoning, answer, and the splitter, which knows where the message ended."""
    before, tag, _ = content.partition(CLOSE)
    splitter = ThinkingSplitter(inside=bool(tag) and OPEN not in before)
    parts = [*splitter.feed(content), *splitter.finish()]
    thought, answer = ("".join(part.text for part in parts if part.kind == kind) for kind in ("thinking", "answer"))
    return thought, answer, splitter


def _begun(thought: str) -> int:
    """How many characters at the end may be the beginning of the closing tag."""
    return next((n for n in range(len(CLOSE) - 1, 0, -1) if thought.endswith(CLOSE[:n])), 0)
