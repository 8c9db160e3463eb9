"""The answer of a command: its text and tokens, and the object that `--json` prints."""

from dataclasses import dataclass, field
from typing import Any

from ..generation import GenerationChunk


@dataclass
class Answer:
    """A command's answer as it comes: text, tokens, and how it ended."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    last: GenerationChunk | None = None
    is_interrupted: bool = False

    @property
    def finish_reason(self) -> str | None:
        if self.is_interrupted:
            return "interrupted"
        return self.last.finish_reason if self.last else None

    def add(self, chunk: GenerationChunk) -> None:
        self.text += chunk.text
        self.tokens.append(chunk.token)
        self.last = chunk


def summary(answer: Answer, *, speculated: bool, kept: bool) -> dict[str, Any]:
    """The object that `--json` prints.

    speculated: whether tokens were guessed. kept: whether some of the prompt may have been known.
    """
    last = answer.last
    names = ["prompt_tokens", "generation_tokens", "prompt_tps", "generation_tps", "peak_memory_gb"]
    names += ["drafted_tokens", "accepted_tokens", "saved_steps"] if speculated else []
    names += ["cached_tokens"] if kept else []
    found = {name: getattr(last, name, 0) for name in names}
    return {"text": answer.text, "finish_reason": answer.finish_reason} | found
