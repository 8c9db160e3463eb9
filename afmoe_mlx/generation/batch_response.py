"""Texts from prompts: `batch_generate`, as in mlx-lm."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .. import device
from ..cache import PrefixStore
from ..errors import AfmoeError, InputError
from ..keywords import BATCH_GENERATE, takes
from ..models import CausalLM
from ..terminal import write
from ..tokenizer import Tokenizer
from .answers import BatchAnswer, BatchAnswers, BatchStats
from .batch import MAX_ROWS
from .chunks import GenerationChunk
from .prompt import Prompt


@dataclass(frozen=True)
class BatchResponse:
    """Answers, in the order of their prompts."""

    texts: list[str]
    stats: BatchStats
    token_ids: list[list[int]]
    """Those of each answer, but for the one that ended it."""
    finish_reasons: list[str]
    """"stop" or "length"."""
    violations: list[str | None]
    """What each falls short of in what it was held to."""
    logprobs: list[list[float]] | None = None
    """Of `token_ids`, if `return_logprobs` asks for them."""


@takes(BATCH_GENERATE)
def batch_generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | Sequence[int] | None = None,
    each: Sequence[Mapping[str, Any]] | None = None,
    max_rows: int = MAX_ROWS,
    prefill_step_size: int | None = None,
    store: PrefixStore | None = None,
    return_logprobs: bool = False,
    verbose: bool = False,
    **options: Any,
) -> BatchResponse:
    """Answers to several prompts, written together, each what `generate` would give with the same options.

    prompts: texts or token ids. max_tokens: of all answers or of each. each: options of single prompts, which win over
    those of all. max_rows: how many answers are written at once; the other prompts wait. return_logprobs: give each
    token's log-probability. verbose: print figures on stdout. options: those of `stream_generate` for sampling, stops,
    constraints, reasoning, guesses and `kv_bits`, and a `store`. Keywords of mlx-lm that mean the same are taken too
    (`afmoe_mlx.keywords`). Raises what `stream_generate` raises, with the prompt's index and before anything runs where
    a prompt or its options are wrong.
    """
    batch = BatchAnswers(model, tokenizer, max_rows=max_rows, prefill_step_size=prefill_step_size, store=store)
    found: dict[BatchAnswer, _Collected] = {}
    for i, (prompt, own) in enumerate(_each(prompts, max_tokens, each)):
        try:
            found[batch.add(prompt, **options | own)] = _Collected()
        except AfmoeError as error:
            raise type(error)(f"prompts[{i}]: {error}") from None
    with device.resident():
        while batch:
            for answer, made in batch.step():
                if isinstance(made, Exception):
                    raise made
                found[answer].add(made, is_end=made.token in answer.request.ends, with_logprobs=return_logprobs)
    if verbose:
        write(_figures(batch.stats))
    answers = list(found.values())
    return BatchResponse(
        texts=[answer.text for answer in answers],
        stats=batch.stats,
        token_ids=[answer.tokens for answer in answers],
        finish_reasons=[answer.finish_reason for answer in answers],
        violations=[answer.violation for answer in answers],
        logprobs=[answer.read_logprobs() for answer in answers] if return_logprobs else None,
    )


@dataclass
class _Collected:
    """An answer as it comes."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[mx.array] = field(default_factory=list)
    finish_reason: str = ""
    violation: str | None = None

    def add(self, chunk: GenerationChunk, *, is_end: bool, with_logprobs: bool) -> None:
        self.text += chunk.text
        if not is_end:
            self.tokens.append(chunk.token)
            if with_logprobs:  # begun now, so that those of the other tokens are let go
                self.logprobs.append(chunk.logprobs[chunk.token])
                mx.async_eval(self.logprobs[-1])
        if chunk.finish_reason is not None:
            self.finish_reason, self.violation = chunk.finish_reason, chunk.violation

    def read_logprobs(self) -> list[float]:
        return mx.stack(self.logprobs).tolist() if self.logprobs else []  # type: ignore[return-value]


def _each(
    prompts: Sequence[Prompt], max_tokens: int | Sequence[int] | None, each: Sequence[Mapping[str, Any]] | None
) -> list[tuple[Prompt, dict[str, Any]]]:
    """Each prompt with its own options; InputError unless there are as many of these as prompts."""
    if isinstance(prompts, str) or not hasattr(prompts, "__len__"):
        raise InputError(f"prompts is {reprlib.repr(prompts)}: expected a list of texts, or of lists of token ids")
    own: list[dict[str, Any]] = [{"max_tokens": max_tokens} for _ in prompts]
    if isinstance(max_tokens, Sequence):
        _check_length("max_tokens", max_tokens, len(prompts))
        own = [{"max_tokens": limit} for limit in max_tokens]
    if each is not None:
        if not isinstance(each, Sequence) or not all(isinstance(more, Mapping) for more in each):
            raise InputError(f"each is {reprlib.repr(each)}: expected a list of options by name, as in [{{'seed': 1}}]")
        _check_length("each", each, len(prompts))
        own = [options | dict(more) for options, more in zip(own, each, strict=True)]
    return list(zip(prompts, own, strict=True))


def _check_length(name: str, values: Sequence[Any], count: int) -> None:
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} entries for {count} prompts: expected one each")


def _figures(stats: BatchStats) -> str:
    return (
        f"Prompt: {stats.prompt_tokens} tokens, {stats.prompt_tps:.3f} tokens-per-sec\n"
        f"Generation: {stats.generation_tokens} tokens, {stats.generation_tps:.3f} tokens-per-sec\n"
        f"Peak memory: {stats.peak_memory:.3f} GB\n"
    )
