"""A row draws in any company what it draws alone; company of its kind costs no more operations."""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import THE_ANSWER, SamplingOptions, make_logits_processors, make_sampler
from afmoe_mlx.generation.loop import Chooser
from afmoe_mlx.generation.requests import Request
from afmoe_mlx.generation.rows import Choice, RowChooser
from afmoe_mlx.generation.sampling import likeliest
from benchmarks.operations import operations

VOCABULARY = 29
SPECIAL = [0, 7, 10**6]

WINDOWS = st.sampled_from([0, 1, 3, 20])
WINDOWS_OR_ANSWER = WINDOWS | st.just(THE_ANSWER)
PENALTIES = st.sampled_from([0.0, 0.0, -1.5, 0.7])
OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 1e-40, 0.7, 1.0, 3]),
    top_p=st.sampled_from([0.0, 5e-324, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 1e-300, 0.05, 1.0]),
    min_tokens_to_keep=st.sampled_from([1, 4, 10**9]),
    top_k=st.sampled_from([0, 0, 1, 5, VOCABULARY - 1, VOCABULARY, 10**9]),
    xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
    xtc_threshold=st.sampled_from([0.0, 0.05, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.6]),
    repetition_context_size=WINDOWS,
    presence_penalty=PENALTIES,
    presence_context_size=WINDOWS_OR_ANSWER,
    frequency_penalty=PENALTIES,
    frequency_context_size=WINDOWS_OR_ANSWER,
    no_repeat_ngram_size=st.sampled_from([0, 0, 0, 1, 2]),
    logit_bias=st.sampled_from([None, {3: 2.5, VOCABULARY - 1: -math.inf}, {11: -1.25}]),
    seed=st.integers(0, 2**64 - 1),
)
PROMPTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
SUMMED = VOCABULARY - 1


def own_processor(tokens: mx.array, logits: mx.array) -> mx.array:
    return logits.at[:, tokens.sum() % SUMMED].add(5.0)


def own_sampler(logprobs: mx.array) -> mx.array:
    return mx.argmin(logprobs, axis=-1).astype(mx.int32)


def parts(options: SamplingOptions, prompt: list[int], own: str = "") -> tuple[Any, Any, list[int]]:
    """What a row and a chooser take: the sampler, the processors, the tokens before."""
    processors = make_logits_processors(options, len(prompt))
    if "processor" in own:
        processors.insert(0 if "first" in own else len(processors), own_processor)
    sampler = own_sampler if "sampler" in own else make_sampler(options, xtc_special_tokens=SPECIAL)
    return sampler, processors, prompt


ROWS = st.tuples(OPTIONS, PROMPTS, st.sampled_from(["", "", "", "sampler", "processor", "processor first"]))
STEPS = st.lists(st.sampled_from(["join", "leave", "step", "step", "step"]), min_size=4, max_size=10)


def coarse_logits(rows: int, seed: int) -> mx.array:
    """Logits with many equals, as those of few bits are, some of them impossible."""
    logits = np.random.default_rng(seed).normal(size=(rows, VOCABULARY)).astype(np.float32) * 8
    logits = np.round(logits) / 4
    logits[logits < -3.5] = -np.inf
    return mx.array(logits).astype(mx.bfloat16)


def request(sampler: Any, processors: Any, prompt: list[int], guide: Any = None) -> Request:
    return Request(prompt, 99, frozenset(), Choice(sampler, processors, guide))


class Company:
    """Rows together, and each alone."""

    def __init__(self) -> None:
        self.choose = RowChooser()
        self.rows: list[tuple[Request, Chooser]] = []
        self.steps = 0

    def add(self, *row: Any) -> None:
        self.rows.append((request(*parts(*row)), Chooser(*parts(*row))))

    def step(self) -> None:
        """Draw once, and compare bit by bit."""
        self.steps += 1
        logits = coarse_logits(len(self.rows), self.steps)
        chosen = self.choose(logits, [together for together, _ in self.rows])
        assert chosen.failed == {}
        for i, (together, alone) in enumerate(self.rows):
            token, logprobs = alone(logits[i : i + 1])
            assert chosen.tokens[i].item() == token.item()
            assert mx.array_equal(chosen.logprobs[i], logprobs, equal_nan=True)
            together.answer.append(int(token.item()))


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(ROWS, min_size=5, max_size=7), steps=STEPS, data=st.data())
def test_a_row_draws_in_any_company_what_it_draws_alone(rows: list[Any], steps: list[str], data: Any) -> None:
    company = Company()
    for row in rows[:3]:
        company.add(*row)
    joining = iter(rows[3:])
    for step in steps:
        if step == "join" and (row := next(joining, None)) is not None:
            company.add(*row)
        elif step == "leave" and len(company.rows) > 1:
            company.rows = data.draw(st.permutations(company.rows))[1:]
        company.step()


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "random": {"temperature": 1.0},
    "filtered": {"temperature": 1.0, "top_p": 0.9, "min_p": 0.05, "top_k": 5, "xtc_probability": 0.5},
    "penalized": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.1, "logit_bias": {3: 1.0}},
}


def drawing(rows: Sequence[dict[str, Any]]) -> Any:
    """The operations of a step, its parameters prepared before."""
    choose = RowChooser()
    asked = [request(*parts(SamplingOptions(seed=i, **options), [1, 2, 3])) for i, options in enumerate(rows)]
    logits = mx.zeros((len(rows), VOCABULARY))
    mx.eval(choose(logits, asked).tokens)
    for row in asked:
        row.answer.append(4)
    chosen = choose(logits, asked)
    return operations(chosen.tokens, chosen.logprobs)


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_rows_of_a_kind_cost_as_many_operations_as_one(kind: str) -> None:
    one = drawing([KINDS[kind]])
    assert drawing([KINDS[kind]] * 16) == one
    alone = Chooser(*parts(SamplingOptions(seed=0, **KINDS[kind]), [1, 2, 3]))
    mx.eval(alone.history)
    assert one.total() <= operations(*alone(mx.zeros((1, VOCABULARY))), alone.history).total() + 12


def test_numbers_may_differ_at_no_cost_and_each_kind_costs_its_own_steps_alone() -> None:
    numbers = [{"temperature": 0.5 + i / 9, "top_p": 0.5 + i / 99, "min_p": i / 99 + 0.01} for i in range(16)]
    assert drawing(numbers) == drawing(numbers[:1])
    several = [*KINDS.values()] * 4
    assert drawing(several).total() <= sum(drawing([options]).total() for options in KINDS.values())
    assert (drawing(several)["Sort"], drawing(several)["ArgPartition"]) == (1, 1)
    assert drawing([{"temperature": 1.0, "top_k": 1 + i} for i in range(16)])["ArgPartition"] == 1


def test_all_greedy_is_argmax_alone() -> None:
    assert set(drawing([{}] * 16)) <= {"ArgReduce", "LogSumExp", "Subtract", "AsType"}


def test_a_bias_of_a_token_that_is_not_among_the_logits_is_refused() -> None:
    row = request(*parts(SamplingOptions(logit_bias={VOCABULARY: 1.0}), [1]))
    with pytest.raises(InputError, match="logit_bias has token 29"):
        RowChooser()(mx.zeros((1, VOCABULARY)), [row])


class Script:
    """A guide: at each step a token that is given, a mask, or nothing."""

    def __init__(self, *script: int | list[int] | None) -> None:
        self._script, self.learnt = list(script), list[list[int]]()

    def follow(self, row: Request) -> int | None:
        self.learnt.append(list(row.answer))
        self._now = self._script.pop(0)
        return self._now if isinstance(self._now, int) else None

    def mask(self) -> mx.array | None:
        if not isinstance(self._now, list):
            return None
        return mx.array([i in self._now for i in range(VOCABULARY)])


OPTIONS_OF_GUIDED = {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.5, "xtc_probability": 0.5}


def test_a_token_that_is_given_takes_no_randomness_and_counts_for_penalties() -> None:
    guided = request(*parts(SamplingOptions(**OPTIONS_OF_GUIDED), [5]), Script(None, 9, 9, None, None))
    alone = Chooser(*parts(SamplingOptions(**OPTIONS_OF_GUIDED), [5]))
    greedy, choose = request(*parts(SamplingOptions(), [5])), RowChooser()
    for step, forced in enumerate((None, 9, 9, None, None)):
        logits = coarse_logits(2, step)
        first, second = choose(logits, [guided, greedy]).tokens.tolist()  # type: ignore[misc]
        if forced is None:
            forced = int(alone(logits[:1])[0].item())
        else:
            alone.history = mx.concatenate([alone.history, mx.array([forced], mx.int32)])
        assert (first, second) == (forced, logits[1].argmax().item())
        guided.answer.append(first)
        greedy.answer.append(second)
    assert [len(answer) for answer in guided.choose.guide.learnt] == [0, 1, 2, 3, 4]


def test_a_mask_holds_its_row_alone_whatever_processors_say() -> None:
    forbidding = SamplingOptions(logit_bias={3: -math.inf, 4: -math.inf, 5: 30.0})
    masked = request(*parts(forbidding, [1]), Script([3, 4], [4, 7]))
    free, choose = request(*parts(forbidding, [1])), RowChooser()
    logits = mx.stack([mx.arange(VOCABULARY) / 8] * 2)
    chosen = choose(logits, [masked, free])
    assert chosen.tokens.tolist() == [4, 5]
    assert mx.exp(chosen.logprobs[0]).sum().item() == pytest.approx(1)
    assert [i for i, x in enumerate(chosen.logprobs[0].tolist()) if x > -math.inf] == [3, 4]  # type: ignore[arg-type]
    masked.answer.append(4)
    free.answer.append(5)
    assert choose(logits, [masked, free]).tokens.tolist() == [7, 5]


def test_a_row_fails_alone_by_what_its_own_functions_raise() -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("no")

    asked = [
        request(fail, [], [1]),
        request(*parts(SamplingOptions(), [1])),
        request(make_sampler(SamplingOptions()), [fail], [1]),
        request(make_sampler(SamplingOptions()), [], [1], Script()),
    ]
    chosen = RowChooser()(coarse_logits(4, 1), asked)
    assert {i: type(error) for i, error in chosen.failed.items()} == {0: ValueError, 2: ValueError, 3: IndexError}
    assert chosen.tokens[1].item() == coarse_logits(4, 1)[1].argmax().item()


@pytest.mark.parametrize("most", [1, 5, 200])
def test_the_likeliest_are_the_first_of_a_stable_sort_for_one_count_and_for_one_a_row(most: int) -> None:
    values = np.round(np.random.default_rng(most).normal(size=(3, 300)) * 4).astype(np.float32)
    order = np.argsort(-values, axis=-1, kind="stable")
    for counts in (None, [most, 1, (most + 1) // 2]):
        found = likeliest(mx.array(values), most, None if counts is None else mx.array(counts)[:, None])
        for i, count in enumerate(counts or [most] * 3):
            assert sorted(order[i, :count].tolist()) == np.flatnonzero(np.array(found[i])).tolist()
