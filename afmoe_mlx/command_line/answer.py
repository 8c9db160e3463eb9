"""The answer of a command: its parts and tokens, how it is printed, and the object that `--json` prints."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..generation import GenerationChunk
from ..messages.reasoning import Part, ThinkingSplitter
from ..terminal import aside, note, write


@dataclass
class Answer:
    """A command's answer as it comes: text, tokens, and how it ended.

    beginning: what of it the prompt holds already, a tag that the template wrote or the words it is to begin with.
    """

    beginning: str = ""
    text: str = ""
    """All that the model wrote."""
    reasoning: str = ""
    content: str = ""
    """What is no reasoning; both are whole after `end`."""
    tokens: list[int] = field(default_factory=list)
    last: GenerationChunk | None = None
    is_interrupted: bool = False

    def __post_init__(self) -> None:
        self._splitter = ThinkingSplitter.after(self.beginning)

    @property
    def finish_reason(self) -> str | None:
        if self.is_interrupted:
            return "interrupted"
        return self.last.finish_reason if self.last else None

    @property
    def is_reasoning(self) -> bool:
        """Whether it has come no further than its reasoning."""
        return self._splitter.thinking

    def add(self, chunk: GenerationChunk) -> list[Part]:
        """Take the next chunk; the parts that became certain with it."""
        self.text += chunk.text
        self.tokens.append(chunk.token)
        self.last = chunk
        return self._told(self._splitter.feed(chunk.text))

    def end(self) -> list[Part]:
        """The part that was held back, as no more comes."""
        return self._told(self._splitter.finish())

    def _told(self, parts: list[Part]) -> list[Part]:
        for part in parts:
            if part.kind == "thinking":
                self.reasoning += part.text
            else:
                self.content += part.text
        return parts


class AnswerPrinter:
    """Prints an answer as it comes: what answers on stdout, the reasoning before it on stderr, lines of its own."""

    def __init__(self) -> None:
        self._last = "\n"  # character of the reasoning

    def show(self, parts: Iterable[Part]) -> None:
        """Print the next parts."""
        for part in parts:
            if part.kind == "answer":
                self._end_reasoning()
                write(part.text)
            elif text := part.text.lstrip("\n") if self._last == "\n" else part.text:
                aside(text)
                self._last = text[-1]

    def end(self) -> None:
        """End the last line."""
        self._end_reasoning()
        write("\n")

    def _end_reasoning(self) -> None:
        if self._last != "\n":
            aside("\n")
            self._last = "\n"


def receive(answer: Answer, chunks: Iterable[GenerationChunk], printer: AnswerPrinter | None) -> None:
    """Take an answer to its end, or until Ctrl-C, and print it as it comes."""
    show = printer.show if printer else lambda parts: None
    try:
        for chunk in chunks:
            show(answer.add(chunk))
    except KeyboardInterrupt:
        answer.is_interrupted = True
    show(answer.end())
    if printer:
        printer.end()


def tell_cut_off(answer: Answer, *, context: int) -> None:
    """Dim lines on stderr about an answer that a limit has ended, or that falls short; see `cut_off`, `falls_short`."""
    options = {"max_tokens": "--max-tokens", "reasoning_budget": "--reasoning-budget"}
    if answer.last and (words := cut_off(answer.last, context=context, is_reasoning=answer.is_reasoning, **options)):
        note(words, dim=True)
    if answer.last and (words := falls_short(answer.last)):
        note(words, dim=True)


def falls_short(last: GenerationChunk) -> str | None:
    """A line about an answer that is not what its options hold it to, None for any other."""
    return None if last.violation is None else f"The answer is not what was asked for: {last.violation}."


def cut_off(
    last: GenerationChunk, *, context: int, is_reasoning: bool, max_tokens: str, reasoning_budget: str
) -> str | None:
    """A line about an answer that a limit has ended, None for any other.

    context: tokens that the conversation may have. max_tokens and reasoning_budget: how the user sets them.
    """
    if last.finish_reason != "length":
        return None
    found = "The answer is cut off" + (" in its reasoning" if is_reasoning else "")
    if last.prompt_tokens + last.generation_tokens >= context:
        return f"{found}: the context of {context:,} tokens is full."
    number = last.generation_tokens
    found += f" after {number:,} token{'' if number == 1 else 's'}: {max_tokens} allows more"
    return f"{found}, {reasoning_budget} ends the reasoning sooner." if is_reasoning else f"{found}."


def summary(answer: Answer, *, speculated: bool, kept: bool, held: bool = False) -> dict[str, Any]:
    """The object that `--json` prints.

    speculated: whether tokens were guessed. kept: whether some of the prompt may have been known. held: whether the
    answer was held to a schema, a regex or a grammar.
    """
    last = answer.last
    names = ["prompt_tokens", "generation_tokens", "prompt_tps", "generation_tps", "peak_memory_gb"]
    names += ["drafted_tokens", "accepted_tokens", "saved_steps"] if speculated else []
    names += ["cached_tokens"] if kept else []
    found = {name: getattr(last, name, 0) for name in names}
    told = {"text": answer.content, "reasoning": answer.reasoning.strip() or None}
    ended = {"finish_reason": answer.finish_reason} | ({"violation": last and last.violation} if held else {})
    return told | ended | found
