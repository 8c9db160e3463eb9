"""What is said of an answer beneath it: how long, how fast, how much of the context it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afmoe_mlx.generation import GenerationChunk

NEARLY_FULL = 0.8


@dataclass(frozen=True)
class AnswerStatus:
    """The figures of one answer."""

    tokens: int
    tokens_per_second: float
    first_token_seconds: float | None = None
    """From the question to the answer's first token; None where it was not measured."""
    reused_tokens: int = 0
    """Tokens of the prompt that were known and not run."""
    context_used: int | None = None
    """Tokens of the whole conversation."""
    context_limit: int | None = None
    is_cut: bool = False
    """Whether the answer ended because it may not be longer."""

    @classmethod
    def of(
        cls,
        chunk: GenerationChunk,
        *,
        first_token_seconds: float | None = None,
        context_used: int | None = None,
        context_limit: int | None = None,
    ) -> AnswerStatus:
        """The figures that an answer's last chunk carries, and those measured around it."""
        return cls(
            tokens=chunk.generation_tokens,
            tokens_per_second=chunk.generation_tps,
            first_token_seconds=first_token_seconds,
            reused_tokens=chunk.cached_tokens,
            context_used=context_used,
            context_limit=context_limit,
            is_cut=chunk.finish_reason == "length",
        )

    def parts(self) -> list[str]:
        """`214 tokens`, `43 tokens/s`, `first in 0.42 s`, `1,024 reused`, `context 1,274 of 4,096`."""
        parts = [count(self.tokens, "token")]
        if self.tokens > 1:  # one token alone has no pace
            parts.append(f"{rate(self.tokens_per_second)} tokens/s")
        if self.first_token_seconds is not None:
            parts.append(f"first in {seconds(self.first_token_seconds)}")
        if self.reused_tokens:
            parts.append(f"{self.reused_tokens:,} reused")
        if meter := context_meter(self.context_used, self.context_limit):
            parts.append(meter)
        if self.is_cut:
            parts.append("cut at the token limit")
        return parts

    def lines(self, width: int) -> list[str]:
        """The parts between dots, in lines that break at the dots."""
        lines: list[str] = []
        for part in self.parts():
            joined = f"{lines[-1]} · {part}" if lines else part
            if lines and len(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(part)
        return lines


def context_meter(used: int | None, limit: int | None) -> str:
    """`context 1,274 of 4,096`, with a word from 80 % on; "" where either is unknown."""
    if used is None or not limit:
        return ""
    meter = f"context {used:,} of {limit:,}"
    return f"{meter} ({int(100 * used / limit)} %, nearly full)" if is_nearly_full(used, limit) else meter


def is_nearly_full(used: int, limit: int) -> bool:
    """Whether a conversation takes 80 % of the context or more."""
    return used >= NEARLY_FULL * limit


def reading(done: int, total: int) -> str:
    """`reading 512 of 3,214 tokens (15 %)`, while a prompt is read."""
    return f"reading {done:,} of {total:,} tokens ({int(100 * done / total) if total else 100} %)"


def thought(duration: float, tokens: int, *, stopped: bool = False) -> str:
    """`thought for 3.1 s, 214 tokens`."""
    verb = "stopped while thinking, after" if stopped else "thought for"
    return f"{verb} {seconds(duration)}, {count(tokens, 'token')}"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def seconds(duration: float) -> str:
    """0.42 s, 3.1 s, 41 s, 2 min 5 s."""
    if duration < 9.95:
        return f"{duration:.2f} s" if duration < 0.995 else f"{duration:.1f} s"
    whole = round(duration)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def rate(per_second: float) -> str:
    """4.3 below ten, else 43."""
    return f"{per_second:.1f}" if per_second < 9.95 else f"{per_second:,.0f}"
