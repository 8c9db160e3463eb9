"""The status line beneath an answer: tokens, speed, the context used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afmoe_mlx.generation import GenerationChunk

NEARLY_FULL = 0.8


def figures(
    chunk: GenerationChunk, *, first_token_seconds: float | None = None, experts: str = "", context: str = ""
) -> list[str]:
    """`214 tokens`, `43 tokens/s`, `first in 0.42 s`, `1,024 reused`, the context meter; by an answer's last chunk.

    first_token_seconds: from the question to the first token; None where it was not measured. experts: what was read
    of them, where not all are in memory.
    """
    parts = [count(chunk.generation_tokens, "token")]
    if chunk.generation_tokens > 1:  # one token alone has no pace
        parts.append(f"{rate(chunk.generation_tps)} tokens/s")
    if first_token_seconds is not None:
        parts.append(f"first in {seconds(first_token_seconds)}")
    if chunk.cached_tokens:
        parts.append(f"{chunk.cached_tokens:,} reused")
    if experts:
        parts.append(experts)
    if context:
        parts.append(context)
    return parts


def in_lines(parts: Sequence[str], width: int) -> list[str]:
    """Parts between dots, in lines that break at the dots."""
    lines: list[str] = []
    for part in parts:
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
    return f"{meter} ({int(100 * used / limit)} %, nearly full)" if used >= NEARLY_FULL * limit else meter


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
