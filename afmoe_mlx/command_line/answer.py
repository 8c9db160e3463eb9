"""The answer of a command: its parts and tokens, how it is printed, and the object that `--json` prints."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..generation import GenerationChunk
from ..messages import AnswerReader, ArgumentsDelta, CallEnd, CallStart, ContentDelta, Delta, ReasoningDelta
from ..terminal import aside, note, write


@dataclass
class Answer:
    """A command's answer as it comes: text, tokens, and how it ended; `reader` takes it apart."""

    reader: AnswerReader
    text: str = ""
    """All that the model wrote."""
    tokens: list[int] = field(default_factory=list)
    last: GenerationChunk | None = None
    is_interrupted: bool = False

    @property
    def content(self) -> str:
        """What is neither reasoning nor a tool call; whole after `end`, as those are."""
        return self.reader.answer.content

    @property
    def reasoning(self) -> str:
        return self.reader.answer.reasoning

    @property
    def finish_reason(self) -> str | None:
        if self.is_interrupted:
            return "interrupted"
        return self.last.finish_reason if self.last else None

    @property
    def is_reasoning(self) -> bool:
        """Whether it has come no further than its reasoning."""
        return self.reader.is_reasoning

    def add(self, chunk: GenerationChunk) -> list[Delta]:
        """Take the next chunk; what became certain with it."""
        self.text += chunk.text
        self.tokens.append(chunk.token)
        self.last = chunk
        return self.reader.feed(chunk.text)

    def end(self) -> list[Delta]:
        """What was held back, as no more comes."""
        return self.reader.finish()


class AnswerPrinter:
    """Prints an answer as it comes: content and tool calls on stdout, the reasoning before them on stderr.

    Reasoning and calls stand on lines of their own.
    """

    def __init__(self) -> None:
        self._last = "\n"  # character of the reasoning
        self._last_out = "\n"  # of what is on stdout
        self._ends_in_call = False

    def show(self, deltas: Iterable[Delta]) -> None:
        """Print the next deltas."""
        for delta in deltas:
            match delta:
                case ReasoningDelta(text):
                    self._reasoning(text)
                case ContentDelta(text) | ArgumentsDelta(_, text):
                    self._write(text)
                case CallStart(_, name):
                    self._write(f"{name}(" if self._last_out == "\n" else f"\n{name}(")
                case CallEnd(_, error):
                    self._write(")\n" if error is None else f")  # malformed: {error}\n")
            self._ends_in_call = isinstance(delta, CallEnd)

    def end(self) -> None:
        """End the last line."""
        self._end_reasoning()
        if not self._ends_in_call:
            write("\n")

    def _write(self, text: str) -> None:
        self._end_reasoning()
        write(text)
        self._last_out = text[-1]

    def _reasoning(self, text: str) -> None:
        if text := text.lstrip("\n") if self._last == "\n" else text:
            aside(text)
            self._last = text[-1]

    def _end_reasoning(self) -> None:
        if self._last != "\n":
            aside("\n")
            self._last = "\n"


def receive(answer: Answer, chunks: Iterable[GenerationChunk], printer: AnswerPrinter | None) -> None:
    """Take an answer to its end, or until Ctrl-C, and print it as it comes."""
    show = printer.show if printer else lambda deltas: None
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
    calls = [asdict(call) for call in answer.reader.answer.tool_calls]
    told = {"text": answer.content, "reasoning": answer.reasoning.strip() or None, "tool_calls": calls}
    ended = {"finish_reason": answer.finish_reason} | ({"violation": last and last.violation} if held else {})
    return told | ended | found
