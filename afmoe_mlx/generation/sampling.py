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
        self.options = options
        self.xtc_special_tokens = xtc_special_tokens
        self._state = _mixed(_fresh_seed() if options.seed is None else int(options.seed))

    def __call__(self, logprobs: mx.array) -> mx.array:
        draw_key, xtc_key = map(mx.random.key, self.next_keys())
        filtered = self._filter(logprobs.astype(mx.float32), xtc_key)
        return most_noisy(filtered, self.temperature, mx.random.gumbel(filtered.shape, key=draw_key))

    @property
    def temperature(self) -> float:
        """That of the draw: never 0."""
        return max(self.options.temperature, _COLDEST)

    def next_keys(self) -> tuple[int, int]:
        """The seeds of a token's draw and of its XTC; the next call gives others.

        SplitMix64, on the host: no operation of a step, and nothing that only one thread could evaluate.
        """
        between = (self._state + _SPLITMIX_STEP) % 2**64
        self._state = (between + _SPLITMIX_STEP) % 2**64
        return _mixed(between), _mixed(self._state)

    def _filter(self, logprobs: mx.array, xtc_key: mx.array) -> mx.array:
        options = self.options
        if 0 < options.top_p < 1:
            logprobs = apply_top_p(logprobs, options.top_p)
        if options.min_p > 0:
            logprobs = apply_min_p(logprobs, options.min_p, options.min_tokens_to_keep)
        if options.xtc_probability > 0:
            excluded = apply_xtc(logprobs, options.xtc_threshold, self.xtc_special_tokens)
            chance = mx.random.uniform(shape=(*logprobs.shape[:-1], 1), key=xtc_key)
            logprobs = mx.where(chance > options.xtc_probability, logprobs, excluded)
        if options.top_k > 0:
            logprobs = apply_top_k(logprobs, options.top_k)
        return logprobs


def keeps_no_count(function: object) -> bool:
    """Whether a copy of it, asked in its place, leaves no trace: true of those made here, unknown of others."""
    return function is greedy or isinstance(function, RandomSampler | PureProcessor)


def apply_top_p(logprobs: mx.array, top_p: float | mx.array) -> mx.array:
    """Keeps the most likely tokens whose probabilities first add up to `top_p`, and those as likely as the last.

    Here and below a number of a filter is that of all rows, or (B, 1).
    """
    ascending = mx.sort(logprobs, axis=-1)
    probs = mx.exp(ascending)
    mass_above = mx.cumsum(probs, axis=-1, reverse=True, inclusive=False)
    total_mass = mass_above[..., :1] + probs[..., :1]
    num_dropped = (mass_above >= top_p * total_mass).sum(axis=-1, keepdims=True)
    # A top_p that float32 rounds to 0 would drop every token.
    num_dropped = mx.minimum(num_dropped, logprobs.shape[-1] - 1)
    return where_kept(logprobs >= mx.take_along_axis(ascending, num_dropped, axis=-1), logprobs)


def apply_min_p(logprobs: mx.array, min_p: float, min_tokens_to_keep: int = 1) -> mx.array:
    """Keeps the tokens at least `min_p` times as likely as the likeliest, and the likeliest `min_tokens_to_keep`."""
    if min_p == 0 or min_tokens_to_keep >= logprobs.shape[-1]:
        return logprobs
    kept = likely_enough(logprobs, math.log(min_p))
    if min_tokens_to_keep > 1:
        kept = kept | likeliest(logprobs, min_tokens_to_keep)
    return where_kept(kept, logprobs)


def likely_enough(logprobs: mx.array, log_min_p: float | mx.array) -> mx.array:
    """(B, V) whether a token's log-probability is at least that of the likeliest and `log_min_p`."""
    return logprobs >= mx.max(logprobs, axis=-1, keepdims=True) + log_min_p


def apply_xtc(logprobs: mx.array, threshold: float | mx.array, special_tokens: Sequence[int] = ()) -> mx.array:
    """Excludes the top choices: every token likelier than the least likely one above `threshold`.

    The likelihoods are those of the tokens still kept, renormalized. `special_tokens` stay.
    """
    kept = no_top_choice(logprobs, threshold)
    # MLX does not check the bounds of an index.
    special = [token for token in special_tokens if token < logprobs.shape[-1]]
    if special:
        kept[..., mx.array(special)] = True
    return where_kept(kept, logprobs)


def no_top_choice(logprobs: mx.array, threshold: float | mx.array) -> mx.array:
    """(B, V) whether a token is the least likely one above `threshold`, or less likely."""
    probs = mx.softmax(logprobs, axis=-1)
    return probs <= mx.where(probs > threshold, probs, mx.inf).min(axis=-1, keepdims=True)


def apply_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """Keeps exactly the `top_k` most likely tokens, or all where there are no more."""
    return logprobs if top_k >= logprobs.shape[-1] else where_kept(likeliest(logprobs, top_k), logprobs)


def likeliest(logprobs: mx.array, most: int, counts: mx.array | None = None) -> mx.array:
    """(B, V) whether a token is among the `most` likeliest, of equals the first, or so many as `counts` (B, 1) says.

    most: at most V, and the most of `counts`.
    """
    found = mx.argpartition(-logprobs, kth=most - 1, axis=-1)[..., :most]
    kept = mx.array(True)
    if counts is not None:
        found = mx.sort(found, axis=-1)  # of equals the first stays the first
        order = mx.argsort(-mx.take_along_axis(logprobs, found, axis=-1), axis=-1)
        found, kept = mx.take_along_axis(found, order, axis=-1), mx.arange(most) < counts
    return mx.put_along_axis(mx.zeros(logprobs.shape, mx.bool_), found, kept, axis=-1)


def where_kept(kept: mx.array, logprobs: mx.array) -> mx.array:
    """Log-probabilities without the tokens that are not kept."""
    return mx.where(kept, logprobs, mx.array(-mx.inf, logprobs.dtype))


def most_noisy(logprobs: mx.array, temperature: float | mx.array, noise: mx.array) -> mx.array:
    """One token a row by the Gumbel-max trick, `noise` being Gumbel's (B, V); a token at -inf is never drawn."""
    scaled = (logprobs - mx.max(logprobs, axis=-1, keepdims=True)) / temperature
    return mx.argmax(scaled + mx.maximum(noise, _LEAST_NOISE), axis=-1)


def _mixed(number: int) -> int:
    """SplitMix64's output for a state: 64 bits that look like any others."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def _fresh_seed() -> int:
    return int.from_bytes(os.urandom(8), "little")
