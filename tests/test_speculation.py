"""Speculation gives what plain decoding gives, leaves no wrong token behind, and stops where it does not pay."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_caches import two_layers
from tiny import ARCHITECTURES, tiny, tiny_folder
from typer.testing import CliRunner

from afmoe_mlx import generate, load, stream_generate
from afmoe_mlx.cache import Cache
from afmoe_mlx.chat import Conversation
from afmoe_mlx.cli import app
from afmoe_mlx.command_line.parsing import with_value
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import (
    DraftModel,
    PromptLookup,
    SamplingOptions,
    decode,
    make_logits_processors,
    make_sampler,
    prefill,
)
from afmoe_mlx.generation.loop import Chooser
from afmoe_mlx.generation.pace import Pace
from afmoe_mlx.generation.speculate import SpeculativeDecoder, Tally
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer

TOLERANCE = 1e-4  # of log-probabilities, whose logits agree within 2e-5
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


class Always(Pace):
    """Drafts whatever it costs, so many tokens as a series of random numbers says."""

    def __init__(self, most: int, seed: int = 0) -> None:
        super().__init__(most)
        self._random = random.Random(seed)

    def length(self, most: int, behind: int = 0) -> int:
        return self._random.randint(0, max(most, 0))

    def drafted(self, length: int, accepted: int, seconds: float) -> None:
        pass


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


OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.05]),
    top_k=st.sampled_from([0, 5]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    repetition_context_size=st.sampled_from([4, 20]),
    seed=st.integers(0, 100),
)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=40, deadline=None)
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
    assert np.abs(np.stack(rows) - run.expected_logprobs(answer)).max() < TOLERANCE
    sampler = make_sampler(options)
    assert [int(sampler(mx.array(row)[None]).item()) for row in rows] == answer  # type: ignore[arg-type]
    assert_cache_holds(model, cache, [*PROMPT, *answer[:-1]])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_tokens_are_those_of_plain_decoding_ties_aside(model_type: str, temperature: float) -> None:
    """Where they part, it is by a tie within rounding: at none of these tokens."""
    model = two_layers(model_type, 6)
    saved = 0
    for seed in range(5):
        run = Run(model, SamplingOptions(temperature=temperature, repetition_penalty=1.1, seed=seed), 20, 60)
        tally = Tally()
        steps, _ = run.ahead(6, seed, tally)
        assert [token for token, _ in steps] == run.plain()
        saved += run.count - 1 - tally.steps
        assert tally.accepted == run.count - 1 - tally.steps
    assert saved > 50


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=25, deadline=None)
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


# Draft models


class Chain:
    """A stand-in for a model, whose next token depends on the last alone, by a table of logits (V, V)."""

    def __init__(self, seed: int, size: int, like: "Chain | None" = None) -> None:
        self.table = 1.5 * mx.random.normal((size, size), key=mx.random.key(seed))
        if like is not None:
            self.table = like.table + 0.5 * self.table
        self.config = SimpleNamespace(vocab_size=size, max_position_embeddings=10**9)

    def make_cache(self) -> "ChainCache":
        return ChainCache()

    def __call__(self, ids: mx.array, *, cache: "ChainCache", logits_to_keep: int = 0) -> mx.array:
        cache.offset += ids.shape[1]
        return self.table[ids][:, -logits_to_keep:]


class ChainCache:
    """As many tokens as were seen, all of which can be taken back."""

    offset = 0
    changes = 0
    arrays = ()

    @property
    def rewindable(self) -> int:
        return self.offset

    def rewindable_after(self, length: int) -> int:
        return self.offset + length

    def rewind(self, n: int) -> None:
        assert 0 <= n <= self.offset
        self.offset -= n


SIZE = 6
SETTINGS = [
    {},
    {"temperature": 0.6},
    {"top_p": 0.8},
    {"top_k": 3, "temperature": 1.3},
    {"min_p": 0.15},
    {"repetition_penalty": 1.4, "repetition_context_size": 1},
    {"xtc_probability": 0.5, "xtc_threshold": 0.2},
]


def chance_of(options: SamplingOptions, logits: mx.array, last: int) -> np.ndarray:
    """(V,) the probability of each token after `last` in plain decoding, by the definition of each filter."""
    processed = logits[None]
    for processor in make_logits_processors(options):
        processed = processor(mx.array([last]), processed)
    p = np.array(mx.softmax(processed[0].astype(mx.float32)), dtype=np.float64)

    def kept(p: np.ndarray) -> np.ndarray:
        descending = np.argsort(-p)
        if options.top_p < 1:
            before = np.cumsum(p[descending]) - p[descending]
            p = np.where(np.isin(np.arange(SIZE), descending[before < options.top_p]), p, 0)
        return np.where(p >= options.min_p * p.max(), p, 0)

    def tempered(p: np.ndarray) -> np.ndarray:
        if options.top_k:
            p = np.where(p >= np.sort(p)[-options.top_k], p, 0)
        p = p ** (1 / options.temperature)
        return p / p.sum()

    p = kept(p)
    choices = p / p.sum() > options.xtc_threshold
    least = np.min(p[choices]) if choices.any() else 1.0
    excluded = np.where(p <= least, p, 0)
    share = options.xtc_probability
    return (1 - share) * tempered(p) + share * tempered(excluded)


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
@pytest.mark.parametrize("drafts", ["draft model", "prompt lookup"])
def test_above_temperature_0_the_distribution_is_that_of_plain_decoding(drafts: str, changes: dict[str, Any]) -> None:
    """A chi-square test of the transitions of 3000 tokens of a chain, at a level of one in ten thousand."""
    options = SamplingOptions(**{"temperature": 1.0, "seed": 5, **changes})
    model: Any = Chain(1, SIZE)
    drafter: Any = DraftModel(Chain(2, SIZE, like=model), 3) if drafts == "draft model" else PromptLookup(3)
    cache: Any = model.make_cache()
    first = [0, 1]
    logits = model(mx.array([first]), cache=cache)[:, -1]
    drafter.begin(first)
    choose = Chooser(make_sampler(options), make_logits_processors(options), first)
    tally = Tally()
    decoder = SpeculativeDecoder(model, cache, choose, drafter, limit=3000, tally=tally, pace=Always(3, 4))
    answer = [1] + [token for token, _ in decoder.tokens(logits)]
    assert tally.accepted > 300
    counts = Counter(pairwise(answer))
    statistic, freedom = 0.0, 0
    for last in range(SIZE):
        chances = chance_of(options, model.table[last], last)
        total = sum(counts[last, token] for token in range(SIZE))
        for token, chance in enumerate(chances):
            assert chance > 0 or counts[last, token] == 0
            if chance * total >= 5:
                statistic += (counts[last, token] - chance * total) ** 2 / (chance * total)
                freedom += 1
    assert statistic < chi_square_bound(freedom)


def chi_square_bound(freedom: int) -> float:
    """The 0.9999 quantile of chi-square, by Wilson and Hilferty's approximation."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.719 * math.sqrt(part)) ** 3


def test_a_draft_model_is_accepted_nearly_as_often_as_the_distributions_overlap() -> None:
    model: Any = Chain(1, SIZE)
    draft: Any = Chain(2, SIZE, like=model)
    cache: Any = model.make_cache()
    drafter = DraftModel(draft, 1)
    drafter.begin([0])
    logits = model(mx.array([[0]]), cache=cache)[:, -1]
    tally = Tally()
    choose = Chooser(make_sampler(SamplingOptions(temperature=1.0, seed=3)), [], [0])
    pace = Always(1)
    pace.length = lambda most, behind=0: min(most, 1)  # type: ignore[method-assign]
    decoder = SpeculativeDecoder(model, cache, choose, drafter, limit=3000, tally=tally, pace=pace)
    answer = [token for token, _ in decoder.tokens(logits)]
    p, q = (np.array(mx.softmax(m.table, axis=-1)) for m in (model, draft))
    overlap = np.mean([np.minimum(p[t], q[t]).sum() for t in answer])
    assert tally.accepted / tally.drafted > 0.9 * overlap


# As a user meets it

Loaded = tuple[CausalLM, Tokenizer]
REPETITIVE = "hello to the world, hello to the world, hello to the"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "m", request.param)


@pytest.fixture
def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """A model whose answers are always speculated on, whatever that costs here."""
    monkeypatch.setattr("afmoe_mlx.generation.speculate.Pace", Always)
    return load(folder)


def ways(loaded: Loaded) -> list[dict[str, Any]]:
    return [{"prompt_lookup": 6}, {"draft_model": loaded[0], "num_draft_tokens": 4}]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.8, "seed": 3},
        {"temperature": 1.2, "top_p": 0.9, "top_k": 20, "seed": 4, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_an_answer_is_the_same_chunk_by_chunk(loaded: Loaded, options: dict[str, Any]) -> None:
    plain = list(stream_generate(*loaded, REPETITIVE, max_tokens=60, **options))
    text = "".join(chunk.text for chunk in plain)
    for more in ({}, {"stop": [text[len(text) // 2 :][:2] or "never"]}, {"max_tokens": 7}):
        chosen: dict[str, Any] = {"max_tokens": 60, **options, **more}
        expected = list(stream_generate(*loaded, REPETITIVE, **chosen))
        for way in ways(loaded):
            cache = loaded[0].make_cache()
            found = list(stream_generate(*loaded, REPETITIVE, cache=cache, **chosen, **way))
            fields = [(chunk.text, chunk.token, chunk.finish_reason, chunk.generation_tokens) for chunk in found]
            assert fields == [(c.text, c.token, c.finish_reason, c.generation_tokens) for c in expected]
            assert np.abs(np.stack([c.logprobs for c in found]) - np.stack([c.logprobs for c in expected])).max() < 1e-4
            last = found[-1]
            assert 0 <= last.saved_steps <= last.accepted_tokens <= last.drafted_tokens
            assert last.prompt_tokens - 1 + len(found) <= cache.offset <= last.prompt_tokens + len(found)
    assert expected[-1].drafted_tokens == expected[-1].saved_steps == 0


def test_a_model_that_drafts_for_itself_is_always_right(loaded: Loaded) -> None:
    for temperature in (0.0, 1.0):
        way = {"draft_model": loaded[0], "num_draft_tokens": 4, "temperature": temperature, "seed": 1}
        last = list(stream_generate(*loaded, REPETITIVE, max_tokens=50, **way))[-1]
        assert last.drafted_tokens == last.accepted_tokens > 20
        assert last.saved_steps == last.accepted_tokens


def test_no_guess_goes_beyond_the_end_of_an_answer(loaded: Loaded) -> None:
    model, tokenizer = loaded
    plain = [chunk.token for chunk in stream_generate(*loaded, REPETITIVE, max_tokens=30)]
    ending = tokenizer.with_extra_eos([str(plain[17])])
    expected = [c.token for c in stream_generate(model, ending, REPETITIVE, max_tokens=30)]
    for way in ways(loaded):
        cache = model.make_cache()
        found = [c.token for c in stream_generate(model, ending, REPETITIVE, cache=cache, max_tokens=30, **way)]
        assert found == expected
        assert cache.offset <= len(tokenizer.encode(REPETITIVE)) + len(found)


def test_an_answer_ends_at_the_models_context(loaded: Loaded) -> None:
    context = loaded[0].config.max_position_embeddings
    for way in ways(loaded):
        assert len(list(stream_generate(*loaded, [5] * (context - 9), max_tokens=50, **way))) == 9


def copying(script: Sequence[int]) -> Callable[[mx.array], mx.array]:
    """A sampler that says what is written, and counts on being asked once a token."""
    tokens = iter(script)
    return lambda logprobs: mx.array([next(tokens)])


def test_what_the_cache_has_seen_is_looked_up_too_and_a_sampler_asked_once_a_token(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = tokenizer.encode(REPETITIVE)
    script = (3 * ids)[:24]
    last = []
    for seen in ([], ids[:-2]):
        cache = model.make_cache()
        prefill(model, ids[:-2], cache, step_size=100)
        options: dict[str, Any] = {"cache": cache, "max_tokens": 24, "prompt_lookup": 4, "seen": seen}
        chunks = list(stream_generate(model, tokenizer, ids[-2:], sampler=copying(script), **options))
        assert [chunk.token for chunk in chunks] == script
        last.append(chunks[-1])
    assert last[1].accepted_tokens > last[0].accepted_tokens
    assert last[1].saved_steps > 8


def test_a_conversation_is_the_same(loaded: Loaded) -> None:
    model, tokenizer = loaded
    plain = Conversation(model, tokenizer, options={"max_tokens": 25})
    answers = ["".join(c.text for c in plain.reply(text)) for text in ("hello", "the world", "hello")]
    for way in ({"prompt_lookup": 5}, {"draft_model": DraftModel(model, 3)}):
        conversation = Conversation(model, tokenizer, options={"max_tokens": 25, **way})
        for text, answer in zip(("hello", "the world", "hello"), answers, strict=True):
            assert "".join(c.text for c in conversation.reply(text)) == answer


def test_an_answer_stopped_at_a_token_is_continued_from(loaded: Loaded) -> None:
    model, tokenizer = loaded
    for way in ways(loaded):
        conversation = Conversation(model, tokenizer, options={"max_tokens": 40, **way})
        chunks = conversation.reply(REPETITIVE)
        for _ in range(9):
            next(chunks)
        chunks.close()
        conversation.options["max_tokens"] = 8
        answer = "".join(c.text for c in conversation.reply("the world"))
        prompt = tokenizer.apply_chat_template(conversation.messages[:-1])
        assert answer == generate(model, tokenizer, prompt, max_tokens=8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_lookup": 0}, "prompt_lookup is 0"),
        ({"prompt_lookup": True}, "prompt_lookup is True"),
        ({"num_draft_tokens": -1}, "num_draft_tokens is -1"),
        ({"draft_model": ("a", "b")}, "draft_model is a tuple"),
        ({"draft_model": tiny(vocab_size=41)}, "41 tokens"),
        ({"draft_model": tiny(), "prompt_lookup": 2}, "choose one"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(loaded: Loaded, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        stream_generate(*loaded, "hello", **options)
    assert "\n" not in str(error.value)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_says_what_was_drafted_accepted_and_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.generation.speculate.Pace", Always)
    options = ["generate", "--model", str(folder), "-p", REPETITIVE, "-m", "40"]
    plain = run(*options)
    for way in (
        ["--prompt-lookup"],
        ["--prompt-lookup", "3"],
        ["--draft-model", str(folder), "--num-draft-tokens", "2"],
    ):
        result = run(*options, *way)
        assert (result.exit_code, result.stdout) == (0, plain.stdout)
        assert " steps saved" in result.stderr
        value = json.loads(run(*options, *way, "--json").stdout)
        assert value["drafted_tokens"] >= value["accepted_tokens"] >= value["saved_steps"] >= 0
        assert value["drafted_tokens"] > 0 or way[0] == "--prompt-lookup"


def test_the_command_refuses_what_cannot_draft(folder: Path) -> None:
    options = ["generate", "--model", str(folder), "-p", "hello"]
    both = run(*options, "--prompt-lookup", "--draft-model", "demo")
    assert both.exit_code == 2
    other = run(*options, "--draft-model", "demo")
    assert other.exit_code == 1
    assert other.stderr.splitlines()[-1].startswith("error: the draft model's tokenizer")


def test_an_option_without_its_number_gets_one() -> None:
    assert with_value(["-p", "x", "--a"], "--a", "8") == ["-p", "x", "--a", "8"]
    assert with_value(["--a", "-p", "x"], "--a", "8") == ["--a", "8", "-p", "x"]
    assert with_value(["--a", "3"], "--a", "8") == ["--a", "3"]
    assert with_value([], "--a", "8") == []
