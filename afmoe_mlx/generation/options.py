"""The options of an answer: how its tokens are chosen, where it ends; and what a generation_config.json says of it."""

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, NamedTuple

from ..errors import InputError
from .stopping import StopStrings

_SOURCE = "generation_config.json: "

# Keys of a generation_config.json that are read, those below and the tokenizer's.
_READ = {
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "suppress_tokens",
    "max_new_tokens",
    "stop_strings",
    "eos_token_id",
}
# Those that change no answer here: how it is computed, what is returned beside it, what beam search alone would read.
_HARMLESS = {
    "_from_model_config",
    "transformers_version",
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "prefill_chunk_size",
    "compile_config",
    "continuous_batching_config",
    "disable_compile",
    "low_memory",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "return_legacy_cache",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "is_assistant",
    "use_mtp",
    "speculation_type",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "target_lookbehind",
    "max_matching_ngram_size",
    "prompt_lookup_num_tokens",
    "early_stopping",
    "length_penalty",
    "diversity_penalty",
    "num_beam_groups",
}
# Values with which the others change none either, beside null, false and what is empty.
_NEUTRAL = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "max_length": 20,
    "penalty_alpha": 0,
}


def unused_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys of a generation_config.json that would change an answer in Transformers, and change none here."""
    others = config.keys() - _READ - _HARMLESS
    return sorted(key for key in others if config[key] and config[key] != _NEUTRAL.get(key))


# As max_tokens: no end but the context's.
NO_LIMIT = -1
# As presence_context_size and frequency_context_size: the tokens of the answer, and none of the prompt.
THE_ANSWER = -1


class _Rule(NamedTuple):
    kind: type
    accepts: Callable[[Any], bool]
    expected: str


# Far beyond any logit, and in float32 still a number however often it is added.
_MOST = 1e30
_PENALTY = _Rule(Real, lambda x: abs(x) <= _MOST, f"a number from -{_MOST:g} to {_MOST:g}")
_CONTEXT_SIZE = _Rule(Integral, lambda x: x >= 0, "an integer >= 0")
_CONTEXT_OR_ANSWER = _Rule(Integral, lambda x: x >= THE_ANSWER, f"an integer >= 0, or {THE_ANSWER} for the answer")
_RULES = {
    "temperature": _Rule(Real, lambda x: x >= 0, "a finite number >= 0"),
    "top_p": _Rule(Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "min_p": _Rule(Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "min_tokens_to_keep": _Rule(Integral, lambda x: x >= 1, "an integer >= 1"),
    "top_k": _Rule(Integral, lambda x: x >= 0, "an integer >= 0"),
    "xtc_probability": _Rule(Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "xtc_threshold": _Rule(Real, lambda x: 0 <= x <= 0.5, "a number from 0 to 0.5"),
    "repetition_penalty": _Rule(Real, lambda x: 1e-3 <= x <= 1e3, "a number from 0.001 to 1000"),
    "repetition_context_size": _CONTEXT_SIZE,
    "presence_penalty": _PENALTY,
    "presence_context_size": _CONTEXT_OR_ANSWER,
    "frequency_penalty": _PENALTY,
    "frequency_context_size": _CONTEXT_OR_ANSWER,
    "no_repeat_ngram_size": _Rule(Integral, lambda x: x >= 0, "an integer >= 0"),
    "seed": _Rule(Integral, lambda x: 0 <= x < 2**64, "an integer from 0 to 2**64 - 1"),
}


def _check(name: str, value: object, source: str = "") -> None:
    rule = _RULES[name]
    if isinstance(value, rule.kind) and not isinstance(value, bool) and _is_finite(value) and rule.accepts(value):
        return
    raise InputError(f"{source}{name} is {reprlib.repr(value)}, expected {rule.expected}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen; the defaults are greedy.

    `top_p` 0 or 1, `top_k` 0, `min_p` 0, `xtc_probability` 0, `repetition_penalty` 1, `presence_penalty` 0,
    `frequency_penalty` 0 and `no_repeat_ngram_size` 0 each switch a step off. A penalty sees the last tokens, those of
    the prompt too: so many as its `…_context_size` says, 0 for all; THE_ANSWER, of presence and frequency, for those of
    the answer alone, as OpenAI and vLLM count them. `logit_bias` is added to the logits of tokens, by
    their ids (also as text, which is how JSON has them); -inf forbids one. `seed` None draws one from the operating
    system. Raises InputError for a value that makes no sense.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    min_tokens_to_keep: int = 1
    top_k: int = 0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    presence_context_size: int = 20
    frequency_penalty: float = 0.0
    frequency_context_size: int = 20
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in _RULES:
            value = getattr(self, name)
            if value is not None or name != "seed":
                _check(name, value)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any], **overrides: Any) -> "SamplingOptions":
        """Options from the contents of a generation_config.json, over which overrides other than None win.

        Without an explicit temperature, `do_sample` false means greedy and `do_sample` true alone temperature 1. The
        file's `repetition_penalty` sees all tokens, as in Transformers. Raises InputError naming the file's key, or the
        override, that makes no sense.
        """
        chosen = {name: value for name, value in overrides.items() if value is not None}
        do_sample = config.get("do_sample")
        if do_sample is not None and not isinstance(do_sample, bool):
            raise InputError(f"{_SOURCE}do_sample is {reprlib.repr(do_sample)}, expected true or false")

        found: dict[str, Any] = {"temperature": 1.0} if do_sample else {}
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size"):
            if config.get(name) is not None and name not in chosen:
                _check(name, config[name], _SOURCE)
                found[name] = config[name]
        if do_sample is False:
            found["temperature"] = 0.0
        if "repetition_penalty" in found:
            found["repetition_context_size"] = 0
        if suppressed := _suppressed(config.get("suppress_tokens")):
            chosen["logit_bias"] = suppressed | _biases(chosen.get("logit_bias", {}))
        return cls(**found | chosen)


def _biases(value: Any) -> dict[int, float]:
    """A bias by token id, as it is given; InputError for anything else."""
    if not isinstance(value, Mapping):
        raise InputError(f"logit_bias is {reprlib.repr(value)}, expected biases by token id, as in {{42: -5.0}}")
    found = {}
    for key, bias in value.items():
        token = int(key) if isinstance(key, str) and key.isdecimal() and len(key) <= 10 else key
        if not _is_token(token):
            raise InputError(f"logit_bias has token {reprlib.repr(key)}, expected the id of one")
        if isinstance(bias, bool) or not isinstance(bias, Real) or not (_PENALTY.accepts(bias) or bias == -math.inf):
            expected = f"{_PENALTY.expected}, or -inf"
            raise InputError(f"logit_bias of token {token} is {reprlib.repr(bias)}, expected {expected}")
        found[int(token)] = float(bias)
    return found


def _suppressed(tokens: Any) -> dict[int, float]:
    """The file's `suppress_tokens` as biases."""
    if tokens is None:
        return {}
    if not isinstance(tokens, list) or not all(map(_is_token, tokens)):
        raise InputError(f"{_SOURCE}suppress_tokens is {reprlib.repr(tokens)}, expected a list of token ids")
    return dict.fromkeys(tokens, -math.inf)


def _is_token(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


@dataclass(frozen=True)
class StoppingOptions:
    """Where an answer ends, beside the tokens that end it in any case (`Tokenizer.eos_token_ids`).

    `stop` are texts at which it ends, themselves never shown, `extra_eos_token` tokens, each by its text or by its id
    in digits. A thought, opened by the model or at the end of the prompt, is closed after `reasoning_budget` tokens for
    the answer to go on; the closing tokens count as the answer's. Raises InputError for a value that makes no sense.
    """

    max_tokens: int = 256
    """NO_LIMIT for as many as the model's context takes."""
    stop: Sequence[str] = ()
    extra_eos_token: Sequence[str] = ()
    reasoning_budget: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens != NO_LIMIT:
            check_count("max_tokens", self.max_tokens, besides=f", or {NO_LIMIT} for as many as the context takes")
        if self.reasoning_budget is not None:
            check_count("reasoning_budget", self.reasoning_budget, least=0)
        StopStrings(self.stop)
        tokens = self.extra_eos_token
        if not isinstance(tokens, Iterable) or isinstance(tokens, str) or not all(isinstance(t, str) for t in tokens):
            raise InputError(f"extra_eos_token is {reprlib.repr(self.extra_eos_token)}, expected a list of strings")

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any], **overrides: Any) -> "StoppingOptions":
        """As `SamplingOptions.from_generation_config`: the file's `max_new_tokens` and `stop_strings`."""
        chosen = {name: value for name, value in overrides.items() if value is not None}
        limit, stop = config.get("max_new_tokens"), config.get("stop_strings")
        if limit is not None and "max_tokens" not in chosen:
            check_count("max_new_tokens", limit, _SOURCE)
            chosen["max_tokens"] = limit
        if stop is not None and "stop" not in chosen:
            stop = [stop] if isinstance(stop, str) else stop
            if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
                raise InputError(f"{_SOURCE}stop_strings is {reprlib.repr(stop)}, expected texts")
            chosen["stop"] = stop
        return cls(**chosen)


def check_count(name: str, value: object, source: str = "", *, least: int = 1, besides: str = "") -> None:
    """InputError for what is no number of things, `least` or more; besides: what else is expected, for the message."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{source}{name} is {value!r}: expected an integer, {least} or more{besides}")


SAMPLING = tuple(field.name for field in fields(SamplingOptions))
STOPPING = tuple(field.name for field in fields(StoppingOptions))
