"""The settings of /set: sampling options and the limits of tokens."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import SamplingOptions, check_options

MEANINGS = {
    "max_tokens": "tokens of an answer at most",
    "reasoning_budget": "tokens after which a thought is closed",
    "temperature": "0: always the likeliest token",
    "top_p": "share that the likeliest tokens make up",
    "min_p": "least share of the best token's likelihood",
    "min_tokens_to_keep": "tokens that min_p leaves at least",
    "top_k": "so many likeliest tokens; 0: all",
    "xtc_probability": "how often top choices are left out",
    "xtc_threshold": "how likely a top choice is at least",
    "repetition_penalty": "divides the logits of recent tokens",
    "repetition_context_size": "how many tokens are recent",
    "seed": "the same seed draws the same answers",
}
UNSET = {"seed": "random", "reasoning_budget": "none"}
SHORT = {"temp": "temperature"}
MAX_TOKENS = 2048
LIMITS = {"max_tokens": MAX_TOKENS, "reasoning_budget": None}
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
        return UNSET[self.name] if self.value is None else str(self.value)


def current(options: Mapping[str, Any], generation_config: Mapping[str, Any]) -> list[Setting]:
    """Every setting with the value that counts."""
    sampling = {name: options.get(name) for name in MEANINGS if name not in LIMITS}
    plain = {**dataclasses.asdict(SamplingOptions()), **LIMITS}
    now = dataclasses.asdict(SamplingOptions.from_generation_config(generation_config, **sampling))
    now |= {name: limit if options.get(name) is None else options[name] for name, limit in LIMITS.items()}
    found = []
    for name, meaning in MEANINGS.items():
        is_set = sampling.get(name) is not None or (name in LIMITS and now[name] != plain[name])
        source = "set" if is_set else DEFAULT if now[name] == plain[name] else "model"
        found.append(Setting(name, now[name], source, meaning))
    return found


def change(options: MutableMapping[str, Any], name: str, text: str) -> str:
    """Set a setting from what was typed, "default" for the model's own value; its full name.

    Raises InputError, and nothing changes, for a setting that is not there and a value that makes no sense.
    """
    name = full_name(name)
    value: Any = LIMITS.get(name) if text == DEFAULT else parse(name, text)
    check_options(**{name: value})
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


def parse(name: str, text: str) -> int | float:
    """The number that was typed; InputError for what is none."""
    kind = kind_of(name)
    try:
        return kind(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {text!r}: expected {noun}, or {DEFAULT}") from None


def kind_of(name: str) -> type[int] | type[float]:
    """Whether a setting is counted or measured."""
    if name in LIMITS:
        return int
    hint = typing.get_type_hints(SamplingOptions)[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return int if int in kinds else float
