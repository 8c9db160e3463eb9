"""`GenerationChunk`: a token of an answer with its text and the figures so far."""

import time
from collections.abc import Callable, Collection, Generator
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
    stop: str | None = None
    """The stop text that ended it, if one did; with the last token alone."""

    @property
    def peak_memory(self) -> float:
        """`peak_memory_gb`, by mlx-lm's name for it."""
        return self.peak_memory_gb


class AnswerChunks:
    """Makes chunks of an answer's tokens: its text, where it ends, its figures.

    limit: tokens that the answer has at most. judge: by a whole text, why it ends, and whether a token ends it, rather
    than a stop text or the limit: how that is to be told, and what the text falls short of, if anything.
    """

    def __init__(
        self,
        texts: TextStream,
        ends: Collection[int],
        stops: StopStrings,
        *,
        prompt_tokens: int,
        limit: int,
        cached_tokens: int = 0,
        tally: Tally | None = None,
        judge: Callable[[str, str, bool], tuple[str, str | None]] = lambda text, reason, is_eos: (reason, None),
    ) -> None:
        self._texts, self._ends, self._stops = texts, ends, stops
        self._prompt_tokens, self._limit, self._judge = prompt_tokens, limit, judge
        self._tally = tally or Tally()
        self._text, self._count, self._prompt_seconds = "", 0, 0.0
        self.cached_tokens = cached_tokens
        self.began = time.perf_counter()
        """When the prompt was begun; once there are tokens, when the first came."""

    def push(self, token: int, logprobs: mx.array) -> GenerationChunk:
        """The chunk of the next token; logprobs (vocab,). CheckpointError where they are no numbers."""
        now, tally = time.perf_counter(), self._tally
        self._count += 1
        if self._count == 1:
            self._prompt_seconds, self.began = now - self.began, now
            if mx.isnan(logprobs).any().item():
                raise CheckpointError("the model's logits are no numbers: its weights are damaged, convert it again")
        text, reason = self._read(token)
        self._text += text
        reason, violation = self._judge(self._text, reason, token in self._ends) if reason else (None, None)
        return GenerationChunk(
            text=text,
            token=token,
            logprobs=logprobs,
            finish_reason=reason,
            prompt_tokens=self._prompt_tokens,
            prompt_tps=(self._prompt_tokens - self.cached_tokens) / max(self._prompt_seconds, 1e-9),
            generation_tokens=self._count,
            generation_tps=(self._count - 1) / max(now - self.began, 1e-9),
            peak_memory_gb=device.peak_memory() / 1e9,
            drafted_tokens=tally.drafted,
            accepted_tokens=tally.accepted,
            saved_steps=max(self._count - 1 - tally.steps, 0) if tally.drafted else 0,
            cached_tokens=self.cached_tokens,
            violation=violation,
            stop=self._stops.matched,
        )

    def _read(self, token: int) -> tuple[str, str | None]:
        """The text that became final, and why it is the last, if it is."""
        is_eos = token in self._ends
        text = "" if is_eos else self._stops.push(self._texts.push(token))
        reason = "stop" if is_eos or self._stops.matched else "length" if self._count == self._limit else None
        if reason:
            text += self._stops.push(self._texts.finish()) + self._stops.finish()
            reason = "stop" if self._stops.matched else reason
        return text, reason


def chunks_of(
    answer: AnswerChunks, steps: Generator[tuple[int, mx.array], None, None]
) -> Generator[GenerationChunk, None, None]:
    """The chunks of an answer whose tokens `steps` gives, the prompt's work included in the first."""
    answer.began = time.perf_counter()
    for token, logprobs in steps:
        chunk = answer.push(token, logprobs)
        if chunk.finish_reason:
            steps.close()  # the cache then holds nothing beyond this token
        yield chunk
        if chunk.finish_reason:
            return
