"""Text from a prompt: `generate` and `stream_generate`, as in mlx-lm."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import mlx.core as mx

from .. import device
from ..cache import Cache, KVQuantization, PrefixStore
from ..errors import InputError, OptionError
from ..keywords import GENERATE, takes
from ..models import CausalLM
from ..terminal import write
from ..tokenizer import Tokenizer
from .budget import decode_within
from .chunks import GenerationChunk, chunks_of
from .constrained import ConstrainedDecoder, NoDrafter
from .drafts import NUM_DRAFT_TOKENS, Drafter, DraftModel, make_drafter
from .grammar import CONSTRAINT, ConstraintOptions
from .loop import Chooser, Progress, decode, prefill
from .options import SAMPLING, STOPPING, SamplingOptions, StoppingOptions, check_count
from .plan import Plan
from .processors import LogitsProcessor, check_token_ids
from .prompt import Prompt, as_token_ids, room_after
from .sampling import Sampler
from .speculate import SpeculativeDecoder, Tally


def generate(model: CausalLM, tokenizer: Tokenizer, prompt: Prompt, *, verbose: bool = False, **options: Any) -> str:
    """The whole answer to a prompt; the options are those of `stream_generate`.

    verbose: print the answer as it comes, and figures after it, on stdout.
    """
    chunks = stream_generate(model, tokenizer, prompt, **options)
    return _told(chunks) if verbose else "".join(chunk.text for chunk in chunks)


def _told(chunks: Generator[GenerationChunk, None, None]) -> str:
    """Print an answer as mlx-lm does, and return it."""
    line, text = "=" * 10 + "\n", ""
    write(line)
    for chunk in chunks:
        write(chunk.text)
        text += chunk.text
    write(
        f"\n{line}Prompt: {chunk.prompt_tokens} tokens, {chunk.prompt_tps:.3f} tokens-per-sec\n"
        f"Generation: {chunk.generation_tokens} tokens, {chunk.generation_tps:.3f} tokens-per-sec\n"
        f"Peak memory: {chunk.peak_memory_gb:.3f} GB\n"
    )
    return text


@takes(GENERATE)
def stream_generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    max_tokens: int | None = None,
    stop: Sequence[str] | None = None,
    extra_eos_token: Sequence[str] | None = None,
    reasoning_budget: int | None = None,
    skip_special_tokens: bool = False,
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    cache: Cache | None = None,
    prefill_step_size: int | None = None,
    on_progress: Progress | None = None,
    prompt_lookup: int | bool | None = None,
    draft_model: CausalLM | DraftModel | None = None,
    num_draft_tokens: int = NUM_DRAFT_TOKENS,
    seen: Sequence[int] = (),
    store: PrefixStore | None = None,
    kv_bits: int | None = None,
    kv_group_size: int | None = None,
    quantized_kv_start: int = 0,
    json_schema: Mapping[str, Any] | str | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: Mapping[str, Any] | str | None = None,
    **sampling: Any,
) -> Generator[GenerationChunk, None, None]:
    """Yield an answer token by token. Keywords of mlx-lm that mean the same are taken too (`afmoe_mlx.keywords`).

    prompt: text, encoded as it is, or token ids, in a sequence or an array (L,) of integers (see
    `Tokenizer.apply_chat_template` for messages).
    max_tokens, stop, extra_eos_token, reasoning_budget: where the answer ends, and its reasoning, the fields of
    `StoppingOptions`; sampling: how tokens are chosen, those of `SamplingOptions`. Those not given come from the
    model's generation_config.json, whose `do_sample` makes answers random. `seed` makes them repeat, `mx.random.seed`
    does not.
    skip_special_tokens: leave special tokens out of the text; else all are in it but the one that ends the answer.
    sampler: log-probabilities (1, vocab) -> token (1,), and logits_processors: (tokens so far, logits) -> logits, take
    the place of the options of sampling.
    cache: what the model has already seen; the prompt continues it.
    prefill_step_size: prompt tokens run at a time, by default what suits the device.
    on_progress: called with the prompt tokens done and their total.
    prompt_lookup: guess up to so many tokens a step from what has been written before, True for as many as suit the
    device; draft_model: up to num_draft_tokens by what a smaller model with the same tokenizer says. Neither changes
    the answer.
    seen: the tokens that `cache` has seen, as part of the prompt: for penalties, guesses and statistics.
    store: of this model; without a cache, the beginning of the prompt that it knows is not run. What is run is kept
    there, the answer too; with a cache, that takes `seen`.
    kv_bits: how many bits the cache made for this answer keeps keys and values of full-attention layers in, None for as
    `model.kv_quantization` says; kv_group_size and quantized_kv_start belong to it, see `KVQuantization`.
    json_schema, regex, grammar, tools and tool_choice: what the answer is held to after its reasoning, the fields of
    `ConstraintOptions`. The last chunk's `violation` says what it fell short of.
    Raises InputError for options that make no sense and for a prompt longer than the model's context, TokenizerError
    for an extra_eos_token that is none, CheckpointError for a model whose logits are no numbers.
    """
    stopping: dict[str, Any] = {
        "max_tokens": max_tokens,
        "stop": stop,
        "extra_eos_token": extra_eos_token,
        "reasoning_budget": reasoning_budget,
    }
    constraints: dict[str, Any] = {
        "json_schema": json_schema,
        "regex": regex,
        "grammar": grammar,
        "tools": tools,
        "tool_choice": tool_choice,
    }
    check_options(
        **stopping,
        prefill_step_size=prefill_step_size,
        prompt_lookup=prompt_lookup,
        num_draft_tokens=num_draft_tokens,
        **sampling,
    )
    seen = as_token_ids(seen, "seen is not")
    plan = Plan.of(
        model.config,
        tokenizer,
        prompt,
        sampler=sampler,
        logits_processors=logits_processors,
        skip_special_tokens=skip_special_tokens,
        seen=seen,
        **stopping,
        **constraints,
        **sampling,
    )
    tokens = plan.prompt
    kept = None if kv_bits is None else KVQuantization(kv_bits, kv_group_size, quantized_kv_start)
    cache, cached = _begin(model, tokens, seen, cache, store, kept)
    room = room_after(model, tokens[cached:], cache.offset)
    check_token_ids(seen, model.config.vocab_size, "seen")
    limit, tally, whole = plan.limit(room), Tally(), [*seen, *tokens]
    drafter = make_drafter(
        model,
        prompt_lookup=prompt_lookup,
        draft_model=draft_model,
        num_draft_tokens=int(num_draft_tokens),
    )
    decoder = _decoder(plan, model, cache, drafter, whole, limit, tally)

    def keep() -> None:
        if store is not None:
            store.insert(whole[: cache.offset], cache)

    def answer(logits: mx.array, before: Sequence[int], limit: int) -> Generator[tuple[int, mx.array], None, None]:
        if decoder is None:
            processors = plan.processors
            yield from decode(model, logits, cache, plan.sampler, tokens=before, processors=processors, limit=limit)
        else:
            yield from decoder.continued(before, logits, limit)

    def steps() -> Generator[tuple[int, mx.array], None, None]:
        rest, step = tokens[cached:], None if prefill_step_size is None else int(prefill_step_size)
        logits = prefill(model, rest, cache, step_size=step, on_progress=on_progress, on_chunk=keep)
        if (budget := plan.budget(whole)) is None:
            yield from answer(logits, whole, limit)
            return
        yield from decode_within(budget, answer, model, logits, cache, tokens=whole, limit=limit, tally=tally)

    counts = {"prompt_tokens": len(whole), "cached_tokens": len(seen) + cached, "limit": limit}
    held = decoder if isinstance(decoder, ConstrainedDecoder) else None
    chunks = chunks_of(plan.chunks(**counts, tally=tally, held=held), steps())
    return _resident(chunks if store is None else _kept(chunks, store, whole, cache))


def _begin(
    model: CausalLM,
    tokens: Sequence[int],
    seen: Sequence[int],
    cache: Cache | None,
    store: PrefixStore | None,
    kept: KVQuantization | None,
) -> tuple[Cache, int]:
    """The cache to go on with, and how many of the prompt's `tokens` it was given by the store."""
    if not isinstance(cache, Cache | None):
        raise InputError(f"the cache is a {type(cache).__name__}: expected what model.make_cache() returns")
    if store is not None and store.model is not model:
        raise InputError("the store is of another model: make one with PrefixStore(model)")
    if kept is not None and not (cache is None and store is None):
        raise InputError("kv_bits is for a new cache: set model.kv_quantization before `cache` or `store` is made")
    cached = 0
    if cache is None and store is not None and tokens:
        cache, cached = store.lookup(tokens)
    elif cache is None:
        cache = model.make_cache(kv_quantization=kept)
    if store is not None and len(seen) + cached != cache.offset:
        raise InputError(f"seen has {len(seen)} tokens, the cache {cache.offset}: a store needs those that it has seen")
    return cache, cached


def _decoder(
    plan: Plan,
    model: CausalLM,
    cache: Cache,
    drafter: Drafter | None,
    whole: Sequence[int],
    limit: int,
    tally: Tally,
) -> SpeculativeDecoder | None:
    """What decodes an answer to the tokens `whole` within its constraint and ahead of it; None if it has neither."""
    if drafter is None and not plan.rules.is_given:
        return None
    choose, ends = Chooser(plan.sampler, plan.processors, ()), plan.tokenizer.eos_token_ids
    options: dict[str, Any] = {"limit": limit, "ends": ends, "tally": tally}
    if not plan.rules.is_given:
        assert drafter is not None
        return SpeculativeDecoder(model, cache, choose, drafter, **options)
    make = plan.rules.begin(plan.tokenizer, model.config.vocab_size, whole)
    return ConstrainedDecoder(model, cache, choose, drafter or NoDrafter(), make=make, begun=len(whole), **options)


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


def check_options(
    *,
    prefill_step_size: int | None = None,
    prompt_lookup: int | bool | None = None,
    num_draft_tokens: int = 1,
    **answer: Any,
) -> None:
    """InputError for options of `stream_generate` that make no sense with any model, OptionError for one it has not."""
    check_count("num_draft_tokens", num_draft_tokens)
    if prefill_step_size is not None:
        check_count("prefill_step_size", prefill_step_size)
    if prompt_lookup is not None and prompt_lookup is not True:
        check_count("prompt_lookup", prompt_lookup)
    if unknown := answer.keys() - {*SAMPLING, *STOPPING, *CONSTRAINT}:
        found = f"no option {sorted(unknown)[0]!r} of an answer"
        raise OptionError(f"{found}: expected those such as max_tokens or temperature")
    SamplingOptions.from_generation_config({}, **{name: answer.get(name) for name in SAMPLING})
    StoppingOptions.from_generation_config({}, **{name: answer.get(name) for name in STOPPING})
    ConstraintOptions.of(answer)
