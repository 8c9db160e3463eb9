"""A generation_config.json is read whole: each key is used, changes nothing, or is named."""

import math
from typing import Any

import pytest

from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import SamplingOptions, StoppingOptions, unused_keys

from_file = SamplingOptions.from_generation_config


def test_keys_that_would_change_an_answer_are_named_and_others_are_not() -> None:
    used = {"temperature": 0.5, "max_new_tokens": 9, "stop_strings": ["x"], "suppress_tokens": [1], "eos_token_id": 2}
    harmless = {"use_cache": True, "transformers_version": "5.0", "pad_token_id": 0, "length_penalty": 2.0}
    neutral = {"num_beams": 1, "typical_p": 1.0, "bad_words_ids": None, "token_healing": False, "max_time": None}
    assert unused_keys(used | harmless | neutral) == []
    others = {"num_beams": 4, "max_time": 3.0, "bad_words_ids": [[1]], "min_new_tokens": 5, "of_tomorrow": "x"}
    assert unused_keys(used | harmless | others) == sorted(others)


@pytest.mark.reference
def test_none_of_transformers_own_defaults_is_named() -> None:
    config = pytest.importorskip("transformers").GenerationConfig()
    defaults: dict[str, Any] = {**config.to_dict(), **config._get_default_generation_params()}
    assert len(defaults) > 20
    assert unused_keys(defaults) == []


def test_the_files_repetition_penalty_sees_all_tokens_and_a_penalty_given_the_last_twenty() -> None:
    def seen(config: dict[str, Any], **given: Any) -> tuple[float, int]:
        options = from_file(config, **given)
        return options.repetition_penalty, options.repetition_context_size

    assert seen({"repetition_penalty": 1.1}) == (1.1, 0)
    assert seen({"repetition_penalty": 1.1}, repetition_context_size=7) == (1.1, 7)
    assert seen({"repetition_penalty": 1.1}, repetition_penalty=1.2) == (1.2, 20)
    assert seen({}, repetition_penalty=1.2) == (1.2, 20)


def test_suppressed_tokens_are_forbidden_and_a_bias_given_for_one_wins() -> None:
    config = {"suppress_tokens": [3, 5]}
    assert from_file(config).logit_bias == {3: -math.inf, 5: -math.inf}
    assert from_file(config, logit_bias={5: 1.5, 8: 2}).logit_bias == {3: -math.inf, 5: 1.5, 8: 2.0}
    assert from_file({"suppress_tokens": None}).logit_bias is None


def test_the_files_limit_and_stop_strings_count_where_nothing_is_given() -> None:
    config = {"max_new_tokens": 40, "stop_strings": ["END", "###"]}
    assert StoppingOptions.from_generation_config({}) == StoppingOptions(256, (), ())
    assert StoppingOptions.from_generation_config(config, stop=None) == StoppingOptions(40, ["END", "###"])
    assert StoppingOptions.from_generation_config(config, max_tokens=3, stop=()) == StoppingOptions(3, ())
    assert StoppingOptions.from_generation_config({"stop_strings": "END"}).stop == ["END"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", "9"),
        ("stop_strings", 5),
        ("stop_strings", [""]),
        ("suppress_tokens", [-1]),
        ("suppress_tokens", 5),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_ngram_size", 2.5),
    ],
)
def test_a_senseless_value_names_the_file_and_the_key(key: str, value: Any) -> None:
    read = StoppingOptions.from_generation_config if key in ("max_new_tokens", "stop_strings") else from_file
    with pytest.raises(InputError, match=rf"^generation_config\.json: {key} is .*expected"):
        read({key: value})


def test_a_logit_bias_may_have_its_ids_as_json_does() -> None:
    assert SamplingOptions(logit_bias={"42": -5, 7: 1}).logit_bias == {42: -5.0, 7: 1.0}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "value",
    [
        5,
        [1, 2],
        {-1: 1.0},
        {"x": 1.0},
        {True: 1.0},
        {1.5: 1.0},
        {1: math.nan},
        {1: math.inf},
        {1: -1e31},
        {1: "2"},
        {1: True},
    ],
)
def test_a_logit_bias_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^logit_bias .*expected"):
        SamplingOptions(logit_bias=value)


@pytest.mark.parametrize("value", ["x", [5]])
def test_extra_eos_tokens_are_a_list_of_texts(value: Any) -> None:
    with pytest.raises(InputError, match=r"extra_eos_token is .*expected a list"):
        StoppingOptions(extra_eos_token=value)
