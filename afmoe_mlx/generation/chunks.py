"""`GenerationChunk`: a token of an answer with its text and the figures so far."""

import time
from collections.abc import Collection, Generator
from dataclasses import dataclass

import mlx.core as mx

from .. import device
from ..errors import CheckpointError
from ..tokenizer import TextStream
from .speculate import Tally
from .stopping import StopStrings


@dataclass(frozen=True)
class GenerationChunk:
    """One token of an answer."""

    text: str
    """What became final with this token; may be empty."""
    token: int
    logprobs: mx.array
    """(vocab,) float32, those the token was drawn from, before any filter."""
    finish_reason: str | None
    """"stop" or "length" with the last token, None before."""
    prompt_tokens: int
    """All of the prompt's, those that were `seen` too."""
    prompt_tps: float
    """Prompt tokens run a second."""
    generation_tokens: int
    generation_tps: float
    peak_memory_gb: float
    drafted_tokens: int = 0
    """Tokens guessed and run ahead."""
    accepted_tokens: int = 0
    """Those that were right."""
    saved_steps: int = 0
    """Passes through the model that plain decoding would have needed more."""
    cached_tokens: int = 0
    """Prompt tokens that were known, from `seen` or a store, and not run."""
    violation: str | None = None
    """What the answer falls short of in what it was held to; with the last token alone."""

    @property
    def peak_memory(self) -> float:
        """`peak_memory_gb`, by mlx-lm's name for it."""
        return self.peak_memory_gb


def chunks_of(
    texts: TextStream,
    ends: Collection[int],
    steps: Generator[tuple[int, mx.array], None, None],
    stops: StopStrings,
    tally: Tally,
    *,
    prompt_tokens: int,
    cached_tokens: int,
    limit: int,
) -> Generator[GenerationChunk, None, None]:
    """The text, statistics and end of an answer whose tokens `steps` gives, the prompt's work included in the first."""
    began = time.perf_counter()
    prompt_seconds = 0.0
    for count, (token, logprobs) in enumerate(steps, 1):
        now = time.perf_counter()
        if count == 1:
            prompt_seconds, began = now - began, now
            if mx.isnan(logprobs).any().item():
                raise CheckpointError("the model's logits are no numbers: its weights are damaged, convert it again")
        is_eos = token in ends
        text = "" if is_eos else stops.push(texts.push(token))
        reason = "stop" if is_eos or stops.matched else "length" if count == limit else None
        if reason:
            text += stops.push(texts.finish()) + stops.finish()
            reason = "stop" if stops.matched else reason
            steps.close()  # the cache then holds nothing beyond this token
        yield GenerationChunk(
            text=text,
            token=token,
            logprobs=logprobs,
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            prompt_tps=(prompt_tokens - cached_tokens) / max(prompt_seconds, 1e-9),
            generation_tokens=count,
            generation_tps=(count - 1) / max(now - began, 1e-9),
            peak_memory_gb=device.peak_memory() / 1e9,
            drafted_tokens=tally.drafted,
            accepted_tokens=tally.accepted,
            saved_steps=max(count - 1 - tally.steps, 0) if tally.drafted else 0,
            cached_tokens=cached_tokens,
        )
        if reason:
            return
