"""Text from a prompt: `generate` and `stream_generate`, as in mlx-lm."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import Any

import mlx.core as mx

from .. import device
from ..cache import Cache, PrefixStore
from ..errors import CheckpointError, InputError
from ..models import CausalLM
from ..tokenizer import Tokenizer
from .budget import ReasoningBudget, decode_within
from .drafts import NUM_DRAFT_TOKENS, DraftModel, make_drafter
from .loop import Chooser, Progress, decode, prefill
from .sampling import LogitsProcessor, Sampler, SamplingOptions, make_logits_processors, make_sampler
from .speculate import SpeculativeDecoder, Tally
from .stopping import StopStrings

Prompt = str | Sequence[int] | mx.array


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


def generate(model: CausalLM, tokenizer: Tokenizer, prompt: Prompt, **options: Any) -> str:
    """The whole answer to a prompt; the options are those of `stream_generate`."""
    return "".join(chunk.text for chunk in stream_generate(model, tokenizer, prompt, **options))


def stream_generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    reasoning_budget: int | None = None,
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    cache: Cache | None = None,
    prefill_step_size: int = 512,
    on_progress: Progress | None = None,
    prompt_lookup: int | None = None,
    draft_model: CausalLM | DraftModel | None = None,
    num_draft_tokens: int = NUM_DRAFT_TOKENS,
    seen: Sequence[int] = (),
    store: PrefixStore | None = None,
    **sampling: Any,
) -> Generator[GenerationChunk, None, None]:
    """Yield an answer token by token.

    prompt: text, encoded as it is, or token ids, in a sequence or an array (L,) of integers (see
    `Tokenizer.apply_chat_template` for messages).
    stop: texts at which the answer ends, themselves never shown.
    reasoning_budget: tokens after which a thought, opened by the model or at the end of the prompt, is closed for the
    answer to go on; the closing tokens count as the answer's.
    sampler: log-probabilities (1, vocab) -> token (1,), and logits_processors: (tokens so far, logits) -> logits, take
    the place of the options below.
    cache: what the model has already seen; the prompt continues it.
    on_progress: called with the prompt tokens done and their total.
    prompt_lookup: guess up to so many tokens a step from what has been written before; draft_model: up to
    num_draft_tokens by what a smaller model with the same tokenizer says. Neither changes the answer.
    seen: the tokens that `cache` has seen, as part of the prompt: for penalties, guesses and statistics.
    store: of this model; without a cache, the beginning of the prompt that it knows is not run. What is run is kept
    there, the answer too; with a cache, that takes `seen`.
    sampling: the fields of `SamplingOptions`; those not given come from the model's generation_config.json.
    Raises InputError for options that make no sense and for a prompt longer than the model's context, CheckpointError
    for a model whose logits are no numbers.
    """
    check_options(
        max_tokens=max_tokens,
        stop=stop,
        reasoning_budget=reasoning_budget,
        prefill_step_size=prefill_step_size,
        prompt_lookup=prompt_lookup,
        num_draft_tokens=num_draft_tokens,
        **sampling,
    )
    options = SamplingOptions.from_generation_config(tokenizer.generation_config, **sampling)
    stops = StopStrings(stop)
    max_tokens, prefill_step_size = int(max_tokens), int(prefill_step_size)
    tokens, seen = encode_prompt(tokenizer, prompt), _token_ids(seen, "seen is not")
    if store is not None and store.model is not model:
        raise InputError("the store is of another model: make one with PrefixStore(model)")
    cache, cached = (cache, 0) if cache is not None else _recall(model, tokens, store)
    if store is not None and len(seen) + cached != cache.offset:
        raise InputError(f"seen has {len(seen)} tokens, the cache {cache.offset}: a store needs those that it has seen")
    room = _room(model, tokens[cached:], cache)
    unspoken = {*tokenizer.encode("\n", add_special_tokens=False), *tokenizer.eos_token_ids}
    sampler = sampler or make_sampler(options, xtc_special_tokens=sorted(unspoken))
    processors = make_logits_processors(options) if logits_processors is None else logits_processors
    limit = min(max_tokens, room)
    tally = Tally()
    drafter = make_drafter(
        model,
        prompt_lookup=None if prompt_lookup is None else int(prompt_lookup),
        draft_model=draft_model,
        num_draft_tokens=int(num_draft_tokens),
    )

    whole = [*seen, *tokens]

    def keep() -> None:
        if store is not None:
            store.insert(whole[: cache.offset], cache)

    decoder = None
    if drafter is not None:
        choose, ends = Chooser(sampler, processors, ()), tokenizer.eos_token_ids
        decoder = SpeculativeDecoder(model, cache, choose, drafter, limit=limit, ends=ends, tally=tally)

    def answer(logits: mx.array, before: Sequence[int], limit: int) -> Generator[tuple[int, mx.array], None, None]:
        if decoder is None:
            yield from decode(model, logits, cache, sampler, tokens=before, processors=processors, limit=limit)
        else:
            yield from decoder.continued(before, logits, limit)

    def steps() -> Generator[tuple[int, mx.array], None, None]:
        rest, step = tokens[cached:], prefill_step_size
        logits = prefill(model, rest, cache, step_size=step, on_progress=on_progress, on_chunk=keep)
        if reasoning_budget is None:
            yield from answer(logits, whole, limit)
            return
        budget = ReasoningBudget(tokenizer, int(reasoning_budget), whole)
        yield from decode_within(budget, answer, model, logits, cache, tokens=whole, limit=limit, tally=tally)

    counts = {"prompt_tokens": len(whole), "cached_tokens": len(seen) + cached}
    chunks = _chunks(tokenizer, steps(), stops, tally, **counts, limit=limit)
    return _resident(chunks if store is None else _kept(chunks, store, whole, cache))


def _recall(model: CausalLM, tokens: Sequence[int], store: PrefixStore | None) -> tuple[Cache, int]:
    """A cache and how many of the prompt's tokens it has seen, as many as the store knows."""
    return store.lookup(tokens) if store is not None and tokens else (model.make_cache(), 0)


def _kept(
    chunks: Generator[GenerationChunk, None, None], store: PrefixStore, prompt: Sequence[int], cache: Cache
) -> Generator[GenerationChunk, None, None]:
    """The same; what came of the answer is kept in the store, however it ends."""
    tokens = list(prompt)
    is_ours = True
    try:
        with closing(chunks):
            for chunk in chunks:
                tokens.append(chunk.token)
                changes = cache.changes
                try:
                    yield chunk
                finally:
                    is_ours = is_ours and cache.changes == changes
    finally:
        # the cache may have seen a token that was not handed out, or not yet one that was
        if is_ours:
            store.insert(tokens[: cache.offset], cache, marks=(len(prompt), len(tokens)))


def _resident(chunks: Generator[GenerationChunk, None, None]) -> Generator[GenerationChunk, None, None]:
    """The same, with what the model needs kept in memory from the first chunk to the last."""
    with device.resident():
        yield from chunks


def _chunks(
    tokenizer: Tokenizer,
    steps: Generator[tuple[int, mx.array], None, None],
    stops: StopStrings,
    tally: Tally,
    *,
    prompt_tokens: int,
    cached_tokens: int,
    limit: int,
) -> Generator[GenerationChunk, None, None]:
    """The text, statistics and end of an answer whose tokens `steps` gives, the prompt's work included in the first."""
    texts = tokenizer.stream()
    began = time.perf_counter()
    prompt_seconds = 0.0
    for count, (token, logprobs) in enumerate(steps, 1):
        now = time.perf_counter()
        if count == 1:
            prompt_seconds, began = now - began, now
            if mx.isnan(logprobs).any().item():
                raise CheckpointError("the model's logits are no numbers: its weights are damaged, convert it again")
        is_eos = token in tokenizer.eos_token_ids
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


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """A prompt as token ids; a text that already begins with the BOS token gets no second one."""
    if prompt is None:
        raise InputError("the prompt is None: expected text or token ids")
    if isinstance(prompt, str):
        has_bos = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
        return tokenizer.encode(prompt, add_special_tokens=not has_bos)
    return _token_ids(prompt, "the prompt is neither text nor")


def _token_ids(tokens: Any, refusal: str) -> list[int]:
    """A sequence of integers, or an array (L,) of any library, as numbers of Python; InputError for anything else."""
    try:
        if isinstance(tokens, bytes | bytearray | memoryview):
            raise TypeError
        return [index(token) for token in (tokens.tolist() if hasattr(tokens, "tolist") else tokens)]
    except TypeError:
        raise InputError(f"{refusal} a list of token ids") from None


def check_options(
    *,
    max_tokens: int = 1,
    stop: Sequence[str] = (),
    reasoning_budget: int | None = None,
    prefill_step_size: int = 1,
    prompt_lookup: int | None = None,
    num_draft_tokens: int = 1,
    **sampling: Any,
) -> None:
    """InputError for options of `stream_generate` that make no sense with any model, TypeError for one it has not."""
    counts: dict[str, Any] = {"max_tokens": max_tokens, "prefill_step_size": prefill_step_size}
    counts["num_draft_tokens"] = num_draft_tokens
    if prompt_lookup is not None:
        counts["prompt_lookup"] = prompt_lookup
    for name, value in counts.items():
        if not _is_count(value) or value < 1:
            raise InputError(f"{name} is {value!r}: expected an integer, 1 or more")
    if reasoning_budget is not None and not (_is_count(reasoning_budget) and reasoning_budget >= 0):
        raise InputError(f"reasoning_budget is {reasoning_budget!r}: expected an integer, 0 or more")
    StopStrings(stop)
    if unknown := sampling.keys() - SamplingOptions.__dataclass_fields__.keys():
        raise TypeError(f"stream_generate() has no option {sorted(unknown)[0]!r}")
    SamplingOptions.from_generation_config({}, **sampling)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _room(model: CausalLM, tokens: Sequence[int], cache: Cache) -> int:
    """How many tokens may follow the prompt; InputError if the prompt itself cannot be run."""
    if not tokens:
        raise InputError("the prompt is empty: expected at least one token")
    vocab_size = model.config.vocab_size
    if unknown := [token for token in tokens if not 0 <= token < vocab_size]:
        raise InputError(f"the prompt has token {unknown[0]}: expected ids from 0 to {vocab_size - 1}")
    context = model.config.max_position_embeddings
    used = cache.offset + len(tokens)
    if used >= context:
        raise InputError(f"the prompt has {used} tokens: expected fewer than {context}, the model's context")
    return context - used
