"""What `/set` knows, reads and refuses."""

from typing import Any

import pytest

from afmoe_mlx.chat.conversation import settings
from afmoe_mlx.errors import InputError


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.3", 0.3),
        ("temp", "1", 1.0),
        ("Top-P", "0.9", 0.9),
        ("top_k", "40", 40),
        ("seed", "7", 7),
        ("max_tokens", "100", 100),
        ("reasoning-budget", "0", 0),
        ("repetition_context_size", "64", 64),
    ],
)
def test_a_value_is_read_as_what_it_is_and_the_default_comes_back(name: str, text: str, value: float) -> None:
    options: dict[str, Any] = {"max_tokens": 2048, "prompt_lookup": 8}
    full = settings.change(options, name, text, 100)
    assert options[full] == value
    assert type(options[full]) is type(value)
    settings.change(options, full, "default", 100)
    assert options[full] is None
    assert options["prompt_lookup"] == 8


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("temperature", "-1", "temperature is -1.0, expected a finite number >= 0"),
        ("temperature", "nan", "temperature is nan"),
        ("temperature", "warm", "temperature is 'warm': expected a number, or default"),
        ("top_k", "1.5", "top_k is '1.5': expected a whole number"),
        ("top_p", "2", "expected a number from 0 to 1"),
        ("max_tokens", "0", "max_tokens is 0: expected an integer, 1 or more"),
        ("seed", "-1", "expected an integer from 0"),
        ("stop", "'a", "expected texts, with a quote at both ends"),
        ("stop", "''", "a stop string is ''"),
        ("logit_bias", "3", "expected ID=VALUE"),
        ("logit_bias", "1=2 100=1", "logit_bias has token 100: expected ids from 0 to 99"),
        ("presence_penalty", "1 2", "presence_penalty has 2 values: expected one"),
        ("reasoning_budget", "-1", "reasoning_budget is -1: expected an integer, 0 or more"),
        ("temprature", "1", "did you mean temperature?"),
        ("zzz", "1", "/set shows all"),
    ],
)
def test_a_value_that_makes_no_sense_changes_nothing(name: str, text: str, words: str) -> None:
    options = {"temperature": 0.5, "top_k": 3}
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        settings.change(options, name, text, 100)
    assert options == {"temperature": 0.5, "top_k": 3}


def test_what_counts_is_shown_with_where_it_comes_from() -> None:
    found = {s.name: (s.value, s.source) for s in settings.current({"top_k": 5, "seed": None}, {"temperature": 0.15})}
    assert found["temperature"] == (0.15, "model")
    assert found["top_k"] == (5, "set")
    assert found["min_p"] == (0.0, "default")
    assert found["max_tokens"] == (settings.MAX_TOKENS, "default")


def test_the_models_limit_and_stop_strings_are_shown_as_the_models() -> None:
    config = {"max_new_tokens": 40, "stop_strings": ["a b", "c"], "suppress_tokens": [3], "repetition_penalty": 1.1}
    found = {s.name: (s.shown, s.source) for s in settings.current({}, config)}
    assert found["max_tokens"] == ("40", "model")
    assert found["stop"] == ("'a b' c", "model")
    assert found["logit_bias"] == ("3=-inf", "model")
    assert found["repetition_context_size"] == ("0", "model")
    assert found["extra_eos_token"] == found["reasoning_budget"] == ("none", "default")
    assert settings.max_tokens({}, config) == 40
    assert settings.max_tokens({"max_tokens": 3}, config) == 3
    assert settings.max_tokens({"max_tokens": None}, {"max_new_tokens": None}) == settings.MAX_TOKENS
    (budget,) = (s for s in settings.current({"reasoning_budget": 0}, {}) if s.name == "reasoning_budget")
    assert (budget.shown, budget.source) == ("0", "set")
