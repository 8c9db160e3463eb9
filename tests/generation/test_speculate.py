"""Speculation gives what plain decoding gives, leaves no wrong token behind, and stops where it does not pay."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.cache import Cache
from afmoe_mlx.generation import (
    PromptLookup,
    SamplingOptions,
    decode,
    make_logits_processors,
    make_sampler,
    prefill,
)
from afmoe_mlx.generation.loop import Chooser
from afmoe_mlx.generation.speculate import SpeculativeDecoder, Tally
from afmoe_mlx.models import CausalLM
from helpers.drafting import OPTIONS, PROMPT, Always
from helpers.tiny import ARCHITECTURES, tiny, two_layers

TOLERANCE = 1e-4  # of log-probabilities, whose logits agree within 2e-5


class Oracle:
    """Guesses from a known answer, spoilt at some places."""

    behind = 0

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], *, most: int, seed: int, vocab: int) -> None:
        self.most, self._text, self._vocab = most, [*prompt, *answer], vocab
        self._place, self._random = len(prompt), random.Random(seed)

    def begin(self, tokens: Sequence[int]) -> None:
        raise AssertionError("not needed")

    def extend(self, tokens: Sequence[int]) -> None:
        self._place += len(tokens)

    def is_ready(self) -> bool:
        return self._random.random() < 0.8

    def propose(self, count: int, choose: Chooser) -> list[int]:
        guesses = self._text[self._place : self._place + count]
        if self._random.random() < 0.5:
            guesses = [t if self._random.random() < 0.7 else (t + 1) % self._vocab for t in guesses]
        return guesses


class Run:
    """One answer of a tiny model, plain or with an oracle's guesses."""

    def __init__(self, model: CausalLM, options: SamplingOptions, slack: int, count: int) -> None:
        self.model, self.options, self.slack, self.count = model, options, slack, count

    def start(self) -> tuple[mx.array, Cache, Chooser]:
        cache = self.model.make_cache(self.slack)
        logits = prefill(self.model, PROMPT, cache, step_size=4)
        return logits, cache, Chooser(make_sampler(self.options), make_logits_processors(self.options), PROMPT)

    def plain(self) -> list[int]:
        logits, cache, _ = self.start()
        sampler, processors = make_sampler(self.options), make_logits_processors(self.options)
        steps = decode(self.model, logits, cache, sampler, tokens=PROMPT, processors=processors, limit=self.count)
        return [token for token, _ in steps]

    def ahead(self, most: int, seed: int, tally: Tally | None = None) -> tuple[Iterator[tuple[int, mx.array]], Cache]:
        logits, cache, choose = self.start()
        oracle = Oracle(PROMPT, self.plain(), most=most, seed=seed, vocab=self.model.config.vocab_size)
        pace = Always(most, seed)
        decoder = SpeculativeDecoder(self.model, cache, choose, oracle, limit=self.count, tally=tally, pace=pace)
        return decoder.tokens(logits), cache

    def expected_logprobs(self, answer: list[int]) -> np.ndarray:
        """From a forward pass over the whole text, processed position by position."""
        logits = self.model(mx.array([[*PROMPT, *answer[:-1]]]))[0, len(PROMPT) - 1 :]
        processors = make_logits_processors(self.options)
        rows = []
        for i in range(len(answer)):
            row = logits[i : i + 1]
            for processor in processors:
                row = processor(mx.array([*PROMPT, *answer[:i]]), row)
            rows.append(np.array(row - mx.logsumexp(row, axis=-1, keepdims=True))[0])
        return np.stack(rows)


def assert_cache_holds(model: CausalLM, cache: Cache, tokens: list[int]) -> None:
    """The cache goes on as one that has seen `tokens` and nothing else."""
    assert cache.offset == len(tokens)
    following = np.array(model(mx.array([[7]]), cache=cache))[0, -1]
    fresh = np.array(model(mx.array([[*tokens, 7]])))[0, -1]
    assert np.abs(following - fresh).max() < 2e-5


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=10, deadline=None)
@given(
    window=st.integers(1, 12),
    slack=st.integers(0, 24),
    options=OPTIONS,
    most=st.integers(1, 9),
    count=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_every_token_is_the_samplers_choice_from_the_models_own_logits(
    model_type: str, window: int, slack: int, options: SamplingOptions, most: int, count: int, seed: int
) -> None:
    """Whatever is guessed, across the wrap of the window: this is all that losslessness means, rounding included."""
    model = two_layers(model_type, window)
    run = Run(model, options, slack, count)
    steps, cache = run.ahead(most, seed)
    drawn = list(steps)
    answer, rows = [token for token, _ in drawn], [np.array(logprobs) for _, logprobs in drawn]
    assert len(answer) == count
    assert np.allclose(np.stack(rows), run.expected_logprobs(answer), rtol=0, atol=TOLERANCE)  # -inf is -inf
    sampler = make_sampler(options)
    assert [int(sampler(mx.array(row)[None]).item()) for row in rows] == answer  # type: ignore[arg-type]
    assert_cache_holds(model, cache, [*PROMPT, *answer[:-1]])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_tokens_are_those_of_plain_decoding_ties_aside(model_type: str, temperature: float) -> None:
    """Where they part, it is by a tie within rounding: at none of these tokens."""
    model = two_layers(model_type, 6)
    saved = 0
    for seed in range(2):
        run = Run(model, SamplingOptions(temperature=temperature, repetition_penalty=1.1, seed=seed), 20, 40)
        tally = Tally()
        steps, _ = run.ahead(6, seed, tally)
        assert [token for token, _ in steps] == run.plain()
        saved += run.count - 1 - tally.steps
        assert tally.accepted == run.count - 1 - tally.steps
    assert saved > 20


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=10, deadline=None)
@given(slack=st.integers(4, 30), seed=st.integers(0, 1000), stop_at=st.integers(1, 30))
def test_closed_at_any_token_the_cache_holds_those_handed_out_alone(
    model_type: str, slack: int, seed: int, stop_at: int
) -> None:
    model = two_layers(model_type, 5)
    steps, cache = Run(model, SamplingOptions(), slack, 40).ahead(6, seed)
    given_out = [next(steps)[0] for _ in range(stop_at)]
    steps.close()  # type: ignore[attr-defined]
    assert len(PROMPT) + stop_at - 1 <= cache.offset <= len(PROMPT) + stop_at
    assert_cache_holds(model, cache, [*PROMPT, *given_out][: cache.offset])


@pytest.mark.parametrize("call", range(1, 20, 3))
def test_an_interruption_amid_a_check_leaves_no_wrong_token(call: int) -> None:
    model = two_layers("afmoe", 5)
    run = Run(model, SamplingOptions(), 20, 30)
    logits, cache, _ = run.start()
    calls = 0

    def interrupted(logprobs: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        if calls > call:
            raise KeyboardInterrupt
        return logprobs.argmax(axis=-1)

    oracle = Oracle(PROMPT, [t if i % 4 else 0 for i, t in enumerate(run.plain())], most=6, seed=1, vocab=40)
    choose = Chooser(interrupted, [], PROMPT)
    decoder = SpeculativeDecoder(model, cache, choose, oracle, limit=30, pace=Always(6, 2))
    with pytest.raises(KeyboardInterrupt):
        list(decoder.tokens(logits))
    assert_cache_holds(model, cache, [*PROMPT, *run.plain()][: cache.offset])


class Slow(Oracle):
    """Never right, and reads a token in a second; the clock is its own."""

    time = 0.0

    def extend(self, tokens: Sequence[int]) -> None:
        super().extend(tokens)
        self.behind += len(tokens)

    def is_ready(self) -> bool:
        self.time, self.behind = self.time + self.behind, 0
        return True

    def propose(self, count: int, choose: Chooser) -> list[int]:
        return [self._text[self._place] ^ 1] * count


def test_what_a_drafter_reads_is_measured_and_the_prompt_is_on_no_account() -> None:
    run = Run(tiny("afmoe"), SamplingOptions(), 20, 40)
    logits, cache, choose = run.start()
    drafter = Slow(PROMPT, run.plain(), most=2, seed=0, vocab=40)
    drafter.behind = 1000
    read: list[tuple[int, float]] = []
    told: list[int] = []
    paid: list[float] = []

    class Noting(Always):
        def length(self, most: int, behind: int = 0) -> int:
            told.append(behind)
            return super().length(most)

        def caught_up(self, tokens: int, seconds: float) -> None:
            read.append((tokens, seconds))

        def idle(self, seconds: float) -> None:
            paid.append(seconds)

    decoder = SpeculativeDecoder(
        run.model, cache, choose, drafter, limit=40, pace=Noting(2), clock=lambda: drafter.time
    )
    assert [token for token, _ in decoder.tokens(logits)] == run.plain()
    assert read[0] == (1000, 1000.0)
    assert len(read) > 2
    assert all(tokens == seconds for tokens, seconds in read)
    assert max(told) > 0
    assert sum(paid) == sum(seconds for _, seconds in read[1:])


def test_a_suspended_answer_leaves_a_cache_alone_that_was_put_to_another_use() -> None:
    model = two_layers("afmoe", 5)
    steps, cache = Run(model, SamplingOptions(), 20, 40).ahead(6, 3)
    for _ in range(8):
        next(steps)
    cache.rewind(cache.offset - 4)
    model(mx.array([[1, 2, 3]]), cache=cache)
    steps.close()  # type: ignore[attr-defined]
    assert_cache_holds(model, cache, [*PROMPT[:4], 1, 2, 3])


READS = ("item", "tolist", "__int__", "__bool__", "__float__", "__index__", "__array__")


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(),
        SamplingOptions(temperature=1.0, top_p=0.9, xtc_probability=0.3, repetition_penalty=1.3, seed=1),
        SamplingOptions(
            logit_bias={3: 1.0}, presence_penalty=0.5, frequency_penalty=0.5, no_repeat_ngram_size=2, seed=1
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("wrong", [0, 3, 6])
def test_a_draft_is_verified_in_one_wait_however_many_are_right(
    monkeypatch: pytest.MonkeyPatch, options: SamplingOptions, wrong: int
) -> None:
    run = Run(two_layers("afmoe", 5), options, 20, 12)
    answer = run.plain()
    logits, cache, choose = run.start()
    first = int(choose(logits)[0].item())  # type: ignore[arg-type]
    assert first == answer[0]
    draft = [token if i != wrong else (token + 1) % 40 for i, token in enumerate(answer[1:7])]
    decoder = SpeculativeDecoder(run.model, cache, choose, PromptLookup(), limit=12)
    waits: list[str] = []

    def counted(name: str, original: Any) -> Any:
        return lambda *arguments, **more: (waits.append(name), original(*arguments, **more))[1]

    with monkeypatch.context() as patched:
        for name in READS:
            patched.setattr(mx.array, name, counted(name, getattr(mx.array, name)), raising=False)
        for name in ("eval", "synchronize"):
            patched.setattr(mx, name, counted(name, getattr(mx, name)))
        found = decoder._verify(first, draft)
    assert [token for token, _ in found] == answer[1 : wrong + 2]
    assert waits == ["tolist"]
    following = choose(run.model(mx.array([[found[-1][0]]]), cache=cache)[:, -1])[0]
    assert int(following.item()) == answer[wrong + 2]  # type: ignore[arg-type]


def test_where_stepping_back_is_impossible_it_decodes_plainly() -> None:
    run = Run(two_layers("afmoe", 4), SamplingOptions(), 0, 40)
    tally = Tally()
    steps, _ = run.ahead(6, 0, tally)
    assert [token for token, _ in steps] == run.plain()
    assert (tally.drafted, tally.steps) == (0, 39)


@settings(max_examples=60, deadline=None)
@given(
    model_type=st.sampled_from(ARCHITECTURES),
    window=st.integers(1, 20),
    slack=st.integers(0, 12),
    walk=st.lists(st.tuples(st.sampled_from([1, 1, 2, 3, 9, 30]), st.integers(0, 100)), min_size=1, max_size=12),
)
def test_how_far_a_cache_will_step_back_is_known_before_a_chunk(
    model_type: str, window: int, slack: int, walk: list[tuple[int, int]]
) -> None:
    model = two_layers(model_type, window)
    cache = model.make_cache(slack)
    for length, share in walk:
        expected = cache.rewindable_after(length)
        model(mx.zeros((1, length), mx.int32), cache=cache)
        assert cache.rewindable == expected
        cache.rewind(cache.rewindable * share // 100)
