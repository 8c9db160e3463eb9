"""Penalties, biases and n-grams: mlx-lm's logits, Transformers' where those are, by plain definitions too."""

import math
from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import THE_ANSWER, SamplingOptions, make_logits_processors

VOCABULARY = 13
TEXTS = st.lists(st.integers(0, VOCABULARY - 1), max_size=24)
LOGITS = st.lists(st.integers(-40, 40), min_size=VOCABULARY, max_size=VOCABULARY)
WINDOWS = st.sampled_from([0, 1, 3, 20])
PENALTIES = st.sampled_from([-1.5, 0.25, 2.0])
EVERYTHING: dict[str, Any] = {
    "logit_bias": {3: 2.5, 7: -1.25, 11: -math.inf},
    "repetition_penalty": 1.3,
    "repetition_context_size": 0,
    "presence_penalty": 0.5,
    "presence_context_size": 9,
    "frequency_penalty": 0.25,
    "frequency_context_size": 15,
    "no_repeat_ngram_size": 3,
}


def processed(options: SamplingOptions, text: list[int], logits: list[int] | list[float]) -> list[float]:
    """The logits after all processors, whose inputs are left as they were."""
    tokens, row = mx.array(text, mx.int32), mx.array([logits], mx.float32)
    found = row
    for processor in make_logits_processors(options):
        found = processor(tokens, found)
    assert (tokens.tolist(), row.tolist()) == (text, [logits])
    return found[0].tolist()  # type: ignore[no-any-return, index, call-overload]


def window(text: list[int], size: int) -> list[int]:
    return text[-size:] if size else text


@settings(deadline=None, max_examples=60)
@given(text=TEXTS, logits=LOGITS, size=WINDOWS, penalty=PENALTIES)
def test_a_present_token_loses_the_penalty_once_and_a_frequent_one_each_time(
    text: list[int], logits: list[int], size: int, penalty: float
) -> None:
    counts = Counter(window(text, size))
    presence = SamplingOptions(presence_penalty=penalty, presence_context_size=size)
    assert processed(presence, text, logits) == [x - penalty * (i in counts) for i, x in enumerate(logits)]
    frequency = SamplingOptions(frequency_penalty=penalty, frequency_context_size=size)
    assert processed(frequency, text, logits) == [x - penalty * counts[i] for i, x in enumerate(logits)]


@settings(deadline=None, max_examples=60)
@given(text=TEXTS, logits=LOGITS, size=st.integers(1, 5))
def test_no_token_is_left_that_would_end_an_n_gram_again(text: list[int], logits: list[int], size: int) -> None:
    grams = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
    begun = tuple(text[len(text) - size + 1 :]) if len(text) >= size - 1 else None
    expected = [-math.inf if begun is not None and (*begun, i) in grams else float(x) for i, x in enumerate(logits)]
    assert processed(SamplingOptions(no_repeat_ngram_size=size), text, logits) == expected


@pytest.mark.reference
@settings(deadline=None, max_examples=60)
@given(text=TEXTS.filter(len), logits=LOGITS, size=st.integers(1, 5))
def test_what_generation_config_asks_for_is_what_transformers_does(
    text: list[int], logits: list[int], size: int
) -> None:
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    config = {"no_repeat_ngram_size": size, "repetition_penalty": 1.3, "suppress_tokens": [2, 5]}
    scores = torch.tensor([logits], dtype=torch.float32)
    for processor in (
        theirs.RepetitionPenaltyLogitsProcessor(1.3),
        theirs.NoRepeatNGramLogitsProcessor(size),
        theirs.SuppressTokensLogitsProcessor([2, 5]),
    ):
        scores = processor(torch.tensor([text]), scores)
    found = processed(SamplingOptions.from_generation_config(config), text, logits)
    assert np.allclose(found, scores[0].numpy(), rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(prompt=TEXTS, answer=TEXTS, logits=LOGITS, presence=PENALTIES, frequency=PENALTIES)
def test_penalties_of_the_answer_alone_are_openais(
    prompt: list[int], answer: list[int], logits: list[int], presence: float, frequency: float
) -> None:
    options = SamplingOptions(
        presence_penalty=presence,
        presence_context_size=THE_ANSWER,
        frequency_penalty=frequency,
        frequency_context_size=THE_ANSWER,
    )
    found = mx.array([logits], mx.float32)
    for processor in make_logits_processors(options, len(prompt)):
        found = processor(mx.array(prompt + answer, mx.int32), found)
    counts = [answer.count(token) for token in range(VOCABULARY)]
    expected = [m - c * frequency - (c > 0) * presence for m, c in zip(logits, counts, strict=True)]
    assert np.allclose(np.array(found[0]), expected, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(text=TEXTS, logits=LOGITS)
def test_all_together_give_mlx_lms_logits(text: list[int], logits: list[int]) -> None:
    peer = pytest.importorskip("mlx_lm.sample_utils")
    options = {name: value for name, value in EVERYTHING.items() if name != "no_repeat_ngram_size"}
    expected = mx.array([logits], mx.float32)
    for processor in peer.make_logits_processors(**options):
        expected = processor(mx.array(text, mx.int32), expected)
    assert np.allclose(processed(SamplingOptions(**options), text, logits), np.array(expected[0]), rtol=1e-6)


def test_each_row_is_processed_and_float32_comes_of_any_dtype() -> None:
    rows = mx.arange(2 * VOCABULARY, dtype=mx.float32).reshape(2, VOCABULARY) - 12
    text = [1, 2, 3, 1, 2]
    for name in ("logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"):
        options = SamplingOptions(**{name: EVERYTHING[name]})
        (processor,) = make_logits_processors(options)
        found = processor(mx.array(text), rows.astype(mx.bfloat16))
        assert found.dtype == mx.float32
        assert found.tolist() == [processed(options, text, row) for row in rows.tolist()]  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("bias", [1.0, -math.inf])
def test_a_bias_of_a_token_that_is_not_among_the_logits_is_refused(bias: float) -> None:
    with pytest.raises(InputError, match=r"logit_bias has token 13: expected ids from 0 to 12"):
        processed(SamplingOptions(logit_bias={1: 1.0, 13: bias}), [], [0] * VOCABULARY)
