"""Sampling on the device: filters over log-probabilities, then one draw.

Filters, their order and their meanings are those of `mlx_lm.sample_utils`. Unlike there, each sampler owns its random
key, so that a seed gives the same tokens whatever else draws in the process.
"""

import math
import os
import reprlib
from collections.abc import Callable, Sequence

import mlx.core as mx

from ..errors import InputError
from .options import SamplingOptions
from .processors import PureProcessor

Sampler = Callable[[mx.array], mx.array]

# Below this the draw is the argmax anyway; far smaller ones would overflow float32.
_COLDEST = 1e-30
# Gumbel noise from uniform float32 is above -4.5, but for a uniform draw of exactly 0, which gives -inf.
_LEAST_NOISE = -5.0
# SplitMix64 (Steele, Lea, Flood 2014), which numbers the random keys.
_SPLITMIX_STEP = 0x9E3779B97F4A7C15


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


def keeps_no_count(function: object) -> bool:
    """Whether a copy of it, asked in its place, leaves no trace: true of those made here, unknown of others."""
    return function is greedy or isinstance(function, RandomSampler | PureProcessor)


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
