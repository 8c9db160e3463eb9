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
from afmoe_mlx.generation import SamplingOptions, make_logits_processors, make_sampler
from afmoe_mlx.generation.loop import Chooser
from afmoe_mlx.generation.rows import Row, RowChooser
from benchmarks.operations import operations

VOCABULARY = 29
SPECIAL = [0, 7, 10**6]

WINDOWS = st.sampled_from([0, 1, 3, 20])
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
    presence_context_size=WINDOWS,
    frequency_penalty=PENALTIES,
    frequency_context_size=WINDOWS,
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
    processors = make_logits_processors(options)
    if "processor" in own:
        processors.insert(0 if "first" in own else len(processors), own_processor)
    sampler = own_sampler if "sampler" in own else make_sampler(options, xtc_special_tokens=SPECIAL)
    return sampler, processors, prompt


ROWS = st.tuples(OPTIONS, PROMPTS, st.sampled_from(["", "", "", "sampler", "processor", "processor first"]))
STEPS = st.lists(st.sampled_from(["join", "leave", "step", "step", "step"]), min_size=4, max_size=14)


def coarse_logits(rows: int, seed: int) -> mx.array:
    """Logits with many equals, as those of few bits are, some of them impossible."""
    logits = np.random.default_rng(seed).normal(size=(rows, VOCABULARY)).astype(np.float32) * 8
    logits = np.round(logits) / 4
    logits[logits < -3.5] = -np.inf
    return mx.array(logits).astype(mx.bfloat16)


class Company:
    """Rows together, and each alone."""

    def __init__(self) -> None:
        self.together = RowChooser()
        self.alone: list[Chooser] = []
        self.steps = 0

    def add(self, *row: Any) -> None:
        self.together.add(Row(*parts(*row)))
        self.alone.append(Chooser(*parts(*row)))

    def keep(self, rows: list[int]) -> None:
        self.together.keep(rows)
        self.alone = [self.alone[i] for i in rows]

    def step(self, given: dict[int, int] | None = None) -> None:
        """Draw once, and compare bit by bit."""
        self.steps += 1
        logits = coarse_logits(len(self.alone), self.steps)
        tokens, logprobs = self.together(logits, given)
        for i, chooser in enumerate(self.alone):
            if given and i in given:
                assert tokens[i].item() == given[i]
                chooser.history = mx.concatenate([chooser.history, mx.array([given[i]], mx.int32)])
                continue
            token, alone = chooser(logits[i : i + 1])
            assert (tokens[i].item(), mx.array_equal(logprobs[i], alone, equal_nan=True).item()) == (token.item(), True)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(ROWS, min_size=5, max_size=7), steps=STEPS, data=st.data())
def test_a_row_draws_in_any_company_what_it_draws_alone(rows: list[Any], steps: list[str], data: Any) -> None:
    company = Company()
    for row in (joining := iter(rows)):
        company.add(*row)
        if len(company.alone) == 3:
            break
    for step in steps:
        if step == "join" and (row := next(joining, None)) is not None:
            company.add(*row)
        elif step == "leave" and len(company.alone) > 1:
            company.keep(data.draw(st.permutations(range(len(company.alone))))[1:])
        company.step()


def test_a_token_that_is_given_takes_no_randomness_and_counts_for_penalties() -> None:
    company = Company()
    for temperature, penalty in ((0.0, 1.5), (1.0, 1.0), (1.0, 1.5)):
        company.add(SamplingOptions(temperature, repetition_penalty=penalty, seed=3, xtc_probability=0.5), [5], "")
    company.step()
    company.step({0: 9, 2: 4})
    company.step({1: 3})
    company.step()


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "random": {"temperature": 1.0},
    "filtered": {"temperature": 1.0, "top_p": 0.9, "min_p": 0.05, "top_k": 5, "xtc_probability": 0.5},
    "penalized": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.1, "logit_bias": {3: 1.0}},
}


def drawing(rows: Sequence[dict[str, Any]]) -> Any:
    """The operations of a step, its parameters prepared before."""
    chooser = RowChooser()
    for i, options in enumerate(rows):
        chooser.add(Row(*parts(SamplingOptions(seed=i, **options), [1, 2, 3])))
    logits = mx.zeros((len(rows), VOCABULARY))
    mx.eval(chooser(logits), chooser.history)
    return operations(*chooser(logits), chooser.history)


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
    chooser = RowChooser()
    chooser.add(Row(*parts(SamplingOptions(logit_bias={VOCABULARY: 1.0}), [1])))
    with pytest.raises(InputError, match="logit_bias has token 29"):
        chooser(mx.zeros((1, VOCABULARY)))
