"""An answer of a batch guesses ahead while it is alone: the same tokens in fewer steps, whoever comes and goes."""

from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afmoe_mlx import batch_generate, load, stream_generate
from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import BatchAnswer, BatchAnswers, GenerationChunk, lone, speculate
from afmoe_mlx.models import CausalLM
from afmoe_mlx.tokenizer import Tokenizer
from helpers.drafting import Always
from helpers.tiny import ARCHITECTURES, scripted, tiny_folder

Loaded = tuple[CausalLM, Tokenizer]

PROMPTS = [[5, 6, 7] * 7, [9, 4], [8, 5, 6] * 4]
FEW = dict.fromkeys((5, 6, 7), 60.0)  # texts of few tokens repeat themselves
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0, "logit_bias": FEW},
    {"temperature": 1.0, "seed": 3, "logit_bias": FEW, "repetition_penalty": 1.1, "presence_penalty": 0.3},
    {"temperature": 1.0, "seed": 4, "logit_bias": FEW, "xtc_probability": 0.5, "top_p": 0.95},
]
LIMIT = 24


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_folder(tmp_path_factory.mktemp("model"), request.param))


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guess whatever it costs: times decide nothing."""
    monkeypatch.setattr(speculate, "Pace", Always)


EXPECTED: dict[Any, list[int]] = {}


def expected(loaded: Loaded, prompt: int, options: int) -> list[int]:
    key = (id(loaded[0]), prompt, options)
    if key not in EXPECTED:
        chunks = stream_generate(*loaded, PROMPTS[prompt], max_tokens=LIMIT, **OPTIONS[options])
        EXPECTED[key] = [chunk.token for chunk in chunks]
    return EXPECTED[key]


COMERS = st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 2), st.sampled_from([1, 3, 9, LIMIT]))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(comers=st.lists(COMERS, max_size=3), first=st.integers(0, 2), drafts=st.booleans(), stored=st.booleans())
def test_company_at_any_time_changes_no_token(
    loaded: Loaded, comers: list[tuple[int, int, int, int]], first: int, drafts: bool, stored: bool
) -> None:
    """comers: after how many steps one comes, its prompt and options, and after how many tokens it is removed."""
    model = loaded[0]
    batch = BatchAnswers(*loaded, store=PrefixStore(model, block_size=4) if stored else None, prefill_step_size=8)
    guesses: dict[str, Any] = {"draft_model": model, "num_draft_tokens": 3} if drafts else {"prompt_lookup": 4}
    found: dict[BatchAnswer, list[int]] = {}
    asked: dict[BatchAnswer, tuple[int, int, int]] = {}
    steps = 0
    comers = [(0, 0, first, LIMIT), *comers]
    while batch or comers:
        for comer in [comer for comer in comers if comer[0] <= steps or not batch]:
            comers.remove(comer)
            answer = batch.add(PROMPTS[comer[1]], max_tokens=LIMIT, **OPTIONS[comer[2]], **guesses)
            found[answer], asked[answer] = [], comer[1:]
        for answer, made in batch.step():
            assert isinstance(made, GenerationChunk)
            found[answer].append(made.token)
            if len(found[answer]) == asked[answer][2] < LIMIT:
                batch.remove(answer)
        steps += 1
    for answer, tokens in found.items():
        prompt, options, most = asked[answer]
        whole = expected(loaded, prompt, options)
        assert tokens == whole[: len(tokens)]
        assert len(tokens) >= min(most, len(whole))


@pytest.mark.parametrize("options", [0, 1])
def test_alone_there_are_fewer_steps_than_tokens_and_in_company_no_guesses(loaded: Loaded, options: int) -> None:
    batch, last, runs, company = BatchAnswers(*loaded), dict[Any, Any](), list[int](), list[int]()
    run = lone.LoneRow.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lone.LoneRow, "run", lambda *a: runs.append(len(batch)) or run(*a))
        first = batch.add(PROMPTS[0], max_tokens=LIMIT, prompt_lookup=4, **OPTIONS[options])
        while batch:
            events = batch.step()
            last |= dict(events)
            if first in last and last[first].generation_tokens >= 12 and not company:
                company.append(1)
                batch.add(PROMPTS[1], max_tokens=3, prompt_lookup=4, **OPTIONS[0])
    stats, chunk = batch.stats, last[first]
    assert set(runs) == {1}
    assert first.request.ahead is None, "it holds the cache"
    assert 0 < chunk.accepted_tokens == chunk.saved_steps <= chunk.drafted_tokens
    assert stats.generation_steps < stats.generation_tokens
    plain = batch_generate(*loaded, [PROMPTS[0]], max_tokens=LIMIT, **OPTIONS[options])
    assert plain.stats.generation_steps == plain.stats.generation_tokens


def test_nothing_is_given_or_kept_beyond_a_stop_an_end_or_the_limit(loaded: Loaded) -> None:
    tokens = [5, 6, 7] * 6
    end = max(loaded[1].eos_token_ids)
    text = "".join(c.text for c in stream_generate(*loaded, PROMPTS[0], sampler=scripted(tokens), max_tokens=18))
    for script, more in (
        (tokens, {"max_tokens": 11}),
        ([*tokens[:9], end, *tokens], {"max_tokens": 18}),
        (tokens, {"max_tokens": 18, "stop": [text[len(text) // 2 :][:3]]}),
    ):
        options: dict[str, Any] = {**more, "temperature": 0.0}
        plain = list(stream_generate(*loaded, PROMPTS[0], sampler=scripted(script), **options))
        batch = BatchAnswers(*loaded, max_rows=1)
        answer = batch.add(PROMPTS[0], sampler=scripted(script), prompt_lookup=4, **options)
        batch.add(PROMPTS[1], max_tokens=1)  # waits: with one row it cannot be begun
        found = [made for _ in range(40) for asked, made in batch.step() if asked is answer]
        assert [chunk.token for chunk in found] == [chunk.token for chunk in plain]
        assert "".join(chunk.text for chunk in found) == "".join(chunk.text for chunk in plain)
        assert found[-1].finish_reason == plain[-1].finish_reason
        assert found[-1].accepted_tokens
        assert answer.request.answer == [chunk.token for chunk in found]


def test_where_the_sampler_fails_what_was_drawn_before_is_given(loaded: Loaded) -> None:
    batch, found, rest = BatchAnswers(*loaded), list[Any](), [5, 6, 7, 5]
    batch.add(PROMPTS[0], sampler=lambda _: mx.array([rest.pop(0)]), max_tokens=LIMIT, prompt_lookup=4)
    while batch:
        found += [made for _, made in batch.step()]
    assert isinstance(found.pop(), IndexError)
    assert found
    assert [chunk.token for chunk in found] == [5, 6, 7, 5][: len(found)]


def test_what_is_held_to_a_form_or_a_budget_does_not_guess(loaded: Loaded) -> None:
    batch = BatchAnswers(*loaded)
    for options in ({"regex": "[ab]{9}"}, {"reasoning_budget": 3}):
        assert batch.add("x", prompt_lookup=True, **options).request.ahead is None
    with pytest.raises(InputError, match="two ways to guess"):
        batch.add("x", prompt_lookup=2, draft_model=loaded[0])
