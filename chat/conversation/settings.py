"""The settings of /set: how tokens are chosen, and where an answer ends."""

import dataclasses
import difflib
import shlex
import types
import typing
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from afmoe_mlx.command_line.logit_bias import parse_logit_bias
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import SamplingOptions, StoppingOptions, check_options
from afmoe_mlx.generation.processors import check_token_ids

MEANINGS = {
    "max_tokens": "tokens of an answer at most; -1: no limit",
    "stop": "texts that end an answer, in quotes if they have blanks",
    "extra_eos_token": "tokens that end it too",
    "reasoning_budget": "tokens after which a thought is closed",
    "temperature": "0: always the likeliest token",
    "top_p": "share that the likeliest tokens make up",
    "min_p": "least share of the best token's likelihood",
    "min_tokens_to_keep": "tokens that min_p leaves at least",
    "top_k": "so many likeliest tokens; 0: all",
    "xtc_probability": "how often top choices are left out",
    "xtc_threshold": "how likely a top choice is at least",
    "repetition_penalty": "divides the logits of recent tokens",
    "repetition_context_size": "how many tokens are recent for it; 0: all",
    "presence_penalty": "taken from the logits of recent tokens",
    "presence_context_size": "how many tokens are recent for it; 0: all; -1: the answer's",
    "frequency_penalty": "taken as often as a recent token occurs",
    "frequency_context_size": "how many tokens are recent for it; 0: all; -1: the answer's",
    "no_repeat_ngram_size": "so many tokens in a row occur once; 0: off",
    "logit_bias": "added to logits of tokens, by id: 42=-5 7=1",
    "seed": "the same seed draws the same answers",
}
SHORT = {"temp": "temperature"}
MAX_TOKENS = 2048
DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One setting: its value and where that comes from."""

    name: str
    value: Any
    source: str
    """"set", "model" (its generation_config.json) or "default"."""
    meaning: str

    @property
    def shown(self) -> str:
        """As `change` reads it."""
        match self.value:
            case None:
                return "random" if self.name == "seed" else "none"
            case dict():
                return " ".join(f"{token}={bias:g}" for token, bias in self.value.items()) or "none"
            case list() | tuple():
                return shlex.join(self.value) or "none"
        return str(self.value)


def current(options: Mapping[str, Any], generation_config: Mapping[str, Any]) -> list[Setting]:
    """Every setting with the value that counts."""
    plain, models, now = _values({}, {}), _values({}, generation_config), _values(options, generation_config)
    found = []
    for name, meaning in MEANINGS.items():
        is_set = options.get(name) is not None
        source = "set" if is_set else DEFAULT if models[name] == plain[name] else "model"
        found.append(Setting(name, now[name], source, meaning))
    return found


def max_tokens(options: Mapping[str, Any], generation_config: Mapping[str, Any]) -> int:
    """How many tokens an answer may have."""
    return _stopping(options, generation_config).max_tokens


def _values(options: Mapping[str, Any], generation_config: Mapping[str, Any]) -> dict[str, Any]:
    given = {field.name: options.get(field.name) for field in dataclasses.fields(SamplingOptions)}
    sampling = SamplingOptions.from_generation_config(generation_config, **given)
    return dataclasses.asdict(sampling) | dataclasses.asdict(_stopping(options, generation_config))


def _stopping(options: Mapping[str, Any], generation_config: Mapping[str, Any]) -> StoppingOptions:
    given = {field.name: options.get(field.name) for field in dataclasses.fields(StoppingOptions)}
    if generation_config.get("max_new_tokens") is None:
        given["max_tokens"] = given["max_tokens"] or MAX_TOKENS
    return StoppingOptions.from_generation_config(generation_config, **given)


def change(options: MutableMapping[str, Any], name: str, text: str, vocab_size: int) -> str:
    """Set a setting from what was typed, "default" for the model's own value; its full name.

    Raises InputError, and nothing changes, for a setting that is not there and a value that makes no sense, such as the
    bias of a token that a model of `vocab_size` has not.
    """
    name = full_name(name)
    value: Any = None if text == DEFAULT else parse(name, text)
    check_options(**{name: value})
    if name == "logit_bias":
        check_token_ids(value or (), vocab_size, name)
    options[name] = value
    return name


def usable(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a session's settings that make sense here; the file may hold anything."""
    found = {}
    for name in MEANINGS.keys() & saved.keys():
        try:
            check_options(**{name: saved[name]})
        except (InputError, TypeError):
            continue
        found[name] = saved[name]
    return found


def full_name(name: str) -> str:
    """A setting's name from what was typed: any case, dashes, a short form; InputError with the nearest for others."""
    wanted = name.casefold().replace("-", "_")
    wanted = SHORT.get(wanted, wanted)
    if wanted in MEANINGS:
        return wanted
    near = difflib.get_close_matches(wanted, MEANINGS, n=1)
    hint = f"did you mean {near[0]}?" if near else "/set shows all"
    raise InputError(f"no setting called {name!r}: {hint}")


def parse(name: str, text: str) -> int | float | list[str] | dict[int, float]:
    """What was typed as a setting's value; InputError for what is none."""
    kind = kind_of(name)
    if kind is dict:
        return parse_logit_bias(text.split())
    if kind is list:
        try:
            return shlex.split(text)
        except ValueError:
            raise InputError(f"{name} is {text!r}: expected texts, with a quote at both ends or none") from None
    if (count := len(text.split())) > 1:
        raise InputError(f"{name} has {count} values: expected one, as in /set temperature 0.3")
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {text!r}: expected {noun}, or {DEFAULT}") from None


def kind_of(name: str) -> type:
    """What a setting's value is: an int, a float, a list of texts, or a dict of biases."""
    hint = (typing.get_type_hints(SamplingOptions) | typing.get_type_hints(StoppingOptions))[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    origins = [typing.get_origin(kind) or kind for kind in kinds]
    return int if int in origins else float if float in origins else dict if Mapping in origins else list
