"""Sampling on the device: penalties of logits, filters over log-probabilities, then one draw.

Filters, their order and their meanings are those of `mlx_lm.sample_utils`. Unlike there, each sampler owns its random
key, so that a seed gives the same tokens whatever else draws in the process.
"""

import math
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, NamedTuple

import mlx.core as mx

from ..errors import InputError

Sampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]

# Below this the draw is the argmax anyway; far smaller ones would overflow float32.
_COLDEST = 1e-30
# Gumbel noise from uniform float32 is above -4.5, but for a uniform draw of exactly 0, which gives -inf.
_LEAST_NOISE = -5.0
# SplitMix64 (Steele, Lea, Flood 2014), which numbers the random keys.
_SPLITMIX_STEP = 0x9E3779B97F4A7C15


class _Rule(NamedTuple):
    kind: type
    accepts: Callable[[Any], bool]
    expected: str


_RULES = {
    "temperature": _Rule(Real, lambda x: x >= 0, "a finite number >= 0"),
    "top_p": _Rule(Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "min_p": _Rule(Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "min_tokens_to_keep": _Rule(Integral, lambda x: x >= 1, "an integer >= 1"),
    "top_k": _Rule(Integral, lambda x: x >= 0, "an integer >= 0"),
    "xtc_probability": _Rule(Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "xtc_threshold": _Rule(Real, lambda x: 0 <= x <= 0.5, "a number from 0 to 0.5"),
    "repetition_penalty": _Rule(Real, lambda x: x > 0, "a finite number > 0"),
    "repetition_context_size": _Rule(Integral, lambda x: x >= 1, "an integer >= 1"),
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

    `top_p` 0 or 1, `top_k` 0, `min_p` 0, `xtc_probability` 0 and `repetition_penalty` 1 each switch a step off.
    `seed` None draws one from the operating system: each sampler has a key of its own, which `mx.random.seed` does not
    reach. Raises InputError for a value that makes no sense.
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
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.name != "seed":
                _check(field.name, value)

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any], **overrides: Any) -> "SamplingOptions":
        """Options from the contents of a generation_config.json, over which overrides other than None win.

        Without an explicit temperature, `do_sample` false means greedy and `do_sample` true alone temperature 1.
        Raises InputError naming the file's key, or the override, that makes no sense.
        """
        chosen = {name: value for name, value in overrides.items() if value is not None}
        source = "generation_config.json: "
        do_sample = config.get("do_sample")
        if do_sample is not None and not isinstance(do_sample, bool):
            raise InputError(f"{source}do_sample is {reprlib.repr(do_sample)}, expected true or false")

        found: dict[str, Any] = {"temperature": 1.0} if do_sample else {}
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
            if config.get(name) is not None and name not in chosen:
                _check(name, config[name], source)
                found[name] = config[name]
        if do_sample is False:
            found["temperature"] = 0.0
        return cls(**found | chosen)


def make_sampler(options: SamplingOptions, *, xtc_special_tokens: Sequence[int] = ()) -> Sampler:
    """A function from log-probabilities (B, V) float32 to token ids (B,), lazily and on the device.

    Temperature 0 is argmax, whatever the rest. The tokens of `xtc_special_tokens` are never removed by XTC. Samplers
    made from the same options with a seed give the same tokens for the same inputs.
    """
    if any(token < 0 for token in xtc_special_tokens):
        raise InputError(f"xtc_special_tokens is {reprlib.repr(list(xtc_special_tokens))}, expected ids >= 0")
    if options.temperature == 0:
        return greedy
    return RandomSampler(options, xtc_special_tokens)


def greedy(logprobs: mx.array) -> mx.array:
    """The likeliest token of each row: (B, V) -> (B,)."""
    return mx.argmax(logprobs, axis=-1)


class RandomSampler:
    """Draws from what the filters of `options` leave; `copy.copy` gives one that draws with the same randomness."""

    def __init__(self, options: SamplingOptions, xtc_special_tokens: Sequence[int]) -> None:
        self._options = options
        self._xtc_special_tokens = xtc_special_tokens
        self._state = _mixed(_fresh_seed() if options.seed is None else int(options.seed))

    def __call__(self, logprobs: mx.array) -> mx.array:
        draw_key, xtc_key = self._next_key(), self._next_key()
        filtered = self._filter(logprobs.astype(mx.float32), xtc_key)
        return _draw(filtered, max(self._options.temperature, _COLDEST), draw_key)

    def _next_key(self) -> mx.array:
        """SplitMix64, on the host: no operation of a step, and nothing that only one thread could evaluate."""
        self._state = (self._state + _SPLITMIX_STEP) % 2**64
        return mx.random.key(_mixed(self._state))

    def _filter(self, logprobs: mx.array, xtc_key: mx.array) -> mx.array:
        options = self._options
        if 0 < options.top_p < 1:
            logprobs = apply_top_p(logprobs, options.top_p)
        if options.min_p > 0:
            logprobs = apply_min_p(logprobs, options.min_p, options.min_tokens_to_keep)
        if options.xtc_probability > 0:
            excluded = apply_xtc(logprobs, options.xtc_threshold, self._xtc_special_tokens)
            chance = mx.random.uniform(shape=(*logprobs.shape[:-1], 1), key=xtc_key)
            logprobs = mx.where(chance > options.xtc_probability, logprobs, excluded)
        if options.top_k > 0:
            logprobs = apply_top_k(logprobs, options.top_k)
        return logprobs


def make_logits_processors(options: SamplingOptions) -> list[LogitsProcessor]:
    """Functions from the tokens so far (n,) and logits (B, V) to new logits, to apply in order before sampling."""
    if options.repetition_penalty == 1:
        return []
    return [RepetitionPenalty(options.repetition_penalty, options.repetition_context_size)]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes the last `context_size` tokens less likely: positive logits are divided by `penalty`, others multiplied."""

    penalty: float
    context_size: int

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        if tokens.size == 0:
            return logits
        recent = mx.broadcast_to(
            tokens[-self.context_size :], (*logits.shape[:-1], min(self.context_size, tokens.size))
        )
        found = mx.take_along_axis(logits, recent, axis=-1)
        found = mx.where(found < 0, found * self.penalty, found / self.penalty)
        # A repeated token is written twice with the same value.
        return mx.put_along_axis(logits, recent, found, axis=-1)


def keeps_no_count(function: object) -> bool:
    """Whether a copy of it, asked in its place, leaves no trace: true of those made here, unknown of others."""
    return function is greedy or isinstance(function, RandomSampler | RepetitionPenalty)


def apply_top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """Keeps the most likely tokens whose probabilities first add up to `top_p`, and those as likely as the last."""
    ascending = mx.sort(logprobs, axis=-1)
    probs = mx.exp(ascending)
    mass_above = mx.cumsum(probs, axis=-1, reverse=True, inclusive=False)
    total_mass = mass_above[..., :1] + probs[..., :1]
    num_dropped = (mass_above >= top_p * total_mass).sum(axis=-1, keepdims=True)
    # A top_p that float32 rounds to 0 would drop every token.
    num_dropped = mx.minimum(num_dropped, logprobs.shape[-1] - 1)
    return _where_kept(logprobs >= mx.take_along_axis(ascending, num_dropped, axis=-1), logprobs)


def apply_min_p(logprobs: mx.array, min_p: float, min_tokens_to_keep: int = 1) -> mx.array:
    """Keeps the tokens at least `min_p` times as likely as the likeliest, and the likeliest `min_tokens_to_keep`."""
    if min_p == 0 or min_tokens_to_keep >= logprobs.shape[-1]:
        return logprobs
    kept = logprobs >= mx.max(logprobs, axis=-1, keepdims=True) + math.log(min_p)
    if min_tokens_to_keep > 1:
        likeliest = mx.argpartition(logprobs, kth=-min_tokens_to_keep, axis=-1)[..., -min_tokens_to_keep:]
        kept = mx.put_along_axis(kept, likeliest, mx.array(True), axis=-1)
    return _where_kept(kept, logprobs)


def apply_xtc(logprobs: mx.array, threshold: float, special_tokens: Sequence[int] = ()) -> mx.array:
    """Excludes the top choices: every token likelier than the least likely one above `threshold`.

    The likelihoods are those of the tokens still kept, renormalized. `special_tokens` stay.
    """
    probs = mx.softmax(logprobs, axis=-1)
    least_likely_choice = mx.where(probs > threshold, probs, mx.inf).min(axis=-1, keepdims=True)
    kept = probs <= least_likely_choice
    # MLX does not check the bounds of an index.
    special = [token for token in special_tokens if token < logprobs.shape[-1]]
    if special:
        kept[..., mx.array(special)] = True
    return _where_kept(kept, logprobs)


def apply_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """Keeps exactly the `top_k` most likely tokens, or all where there are no more."""
    if top_k >= logprobs.shape[-1]:
        return logprobs
    others = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, others, mx.array(-mx.inf, logprobs.dtype), axis=-1)


def _where_kept(kept: mx.array, logprobs: mx.array) -> mx.array:
    return mx.where(kept, logprobs, mx.array(-mx.inf, logprobs.dtype))


def _draw(logprobs: mx.array, temperature: float, key: mx.array) -> mx.array:
    """One token a row by the Gumbel-max trick; a token at -inf is never drawn."""
    scaled = (logprobs - mx.max(logprobs, axis=-1, keepdims=True)) / temperature
    noise = mx.maximum(mx.random.gumbel(logprobs.shape, key=key), _LEAST_NOISE)
    return mx.argmax(scaled + noise, axis=-1)


def _mixed(number: int) -> int:
    """SplitMix64's output for a state: 64 bits that look like any others."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def _fresh_seed() -> int:
    return int.from_bytes(os.urandom(8), "little")
