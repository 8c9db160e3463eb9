"""The draws of several rows at once, each as its sampler alone would draw.

The numbers of filters and draws lie in arrays. A filter runs on the rows alone that want it, on all of these in one
sort or partition; the random bits of a row come of its own key.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import mlx.core as mx

from .sampling import (
    RandomSampler,
    Sampler,
    apply_top_p,
    greedy,
    likeliest,
    likely_enough,
    most_noisy,
    no_top_choice,
    where_kept,
)

T = TypeVar("T")


class Draws:
    """The samplers of rows as one; those that were not made here run row by row."""

    def __init__(self, samplers: Sequence[Sampler], vocab_size: int) -> None:
        self._random = {i: sampler for i, sampler in enumerate(samplers) if isinstance(sampler, RandomSampler)}
        self._own = {
            i: sampler for i, sampler in enumerate(samplers) if i not in self._random and sampler is not greedy
        }
        self._rows = mx.array(list(self._random), mx.int32)
        self._filters = _Filters(list(self._random.values()), vocab_size)
        self._temperatures = _column([sampler.temperature for sampler in self._random.values()])

    def __call__(self, logprobs: mx.array, given: Mapping[int, int], failed: dict[int, Exception]) -> mx.array:
        """Tokens (B,) by log-probabilities (B, V); rows in `given` take a token without a draw.

        A row whose own sampler raises is put into `failed`, and gets any token.
        """
        if len(self._random) == logprobs.shape[0]:
            tokens = self._drawn(logprobs, given)
        else:
            tokens = greedy(logprobs)
            if self._random:
                tokens[self._rows] = self._drawn(logprobs[self._rows], given)
        for i, sampler in self._own.items():
            if i in given or i in failed:
                continue
            try:
                tokens[i] = sampler(logprobs[i : i + 1])[0]
            except Exception as error:
                failed[i] = error
        if given:
            tokens[mx.array(list(given))] = mx.array(list(given.values()), tokens.dtype)
        return tokens

    def _drawn(self, logprobs: mx.array, given: Mapping[int, int]) -> mx.array:
        keys = [(0, 0) if i in given else sampler.next_keys() for i, sampler in self._random.items()]
        filtered = self._filters(logprobs, [xtc for _, xtc in keys])
        gumbel = mx.vmap(lambda key: mx.random.gumbel(logprobs.shape[1:], key=key))
        return most_noisy(filtered, self._temperatures, gumbel(_keys([draw for draw, _ in keys])))


class _Filters:
    """The filters of random samplers, in the order in which `RandomSampler` applies them."""

    def __init__(self, samplers: Sequence[RandomSampler], vocab_size: int) -> None:
        options = [sampler.options for sampler in samplers]
        self._top_p = _Among([0 < row.top_p < 1 for row in options])
        self._min_p = _Among([row.min_p > 0 and row.min_tokens_to_keep < vocab_size for row in options])
        self._xtc = _Among([row.xtc_probability > 0 for row in options])
        self._top_k = _Among([0 < row.top_k < vocab_size for row in options])

        self._masses = _column([row.top_p for row in self._top_p.of(options)])
        self._ratios = _column([math.log(row.min_p) for row in self._min_p.of(options)])
        self._least_kept = _Counts([row.min_tokens_to_keep for row in self._min_p.of(options)])
        self._thresholds = _column([row.xtc_threshold for row in self._xtc.of(options)])
        self._chances = _column([row.xtc_probability for row in self._xtc.of(options)])
        self._special = _places([s.xtc_special_tokens for s in self._xtc.of(samplers)], vocab_size)
        self._most_kept = _Counts([row.top_k for row in self._top_k.of(options)])

    def __call__(self, logprobs: mx.array, xtc_keys: Sequence[int]) -> mx.array:
        """Log-probabilities (B, V) of what is left; the keys are for XTC."""
        logprobs = self._top_p.apply(lambda rows: apply_top_p(rows, self._masses), logprobs)
        logprobs = self._min_p.apply(self._with_min_p, logprobs)
        logprobs = self._xtc.apply(lambda rows: self._with_xtc(rows, self._xtc.of(xtc_keys)), logprobs)
        return self._top_k.apply(lambda rows: where_kept(self._most_kept.likeliest(rows), rows), logprobs)

    def _with_min_p(self, logprobs: mx.array) -> mx.array:
        kept = likely_enough(logprobs, self._ratios)
        if self._least_kept.most > 1:
            kept = kept | self._least_kept.likeliest(logprobs)
        return where_kept(kept, logprobs)

    def _with_xtc(self, logprobs: mx.array, keys: Sequence[int]) -> mx.array:
        kept = no_top_choice(logprobs, self._thresholds)
        if self._special is not None:
            kept[self._special] = True
        chance = mx.vmap(lambda key: mx.random.uniform(shape=(1,), key=key))(_keys(keys))
        return mx.where(chance > self._chances, logprobs, where_kept(kept, logprobs))


class _Among:
    """Those of several rows that a filter is for."""

    def __init__(self, wanted: Sequence[bool]) -> None:
        self._rows = [i for i, is_wanted in enumerate(wanted) if is_wanted]
        self._index = None if all(wanted) else mx.array(self._rows, mx.int32)

    def of(self, things: Sequence[T]) -> list[T]:
        """Their things, of one thing a row."""
        return [things[i] for i in self._rows]

    def apply(self, function: Callable[[mx.array], mx.array], values: mx.array) -> mx.array:
        """Values (B, V) with theirs, (n, V), as the function makes them."""
        if not self._rows:
            return values
        if self._index is None:
            return function(values)
        changed = mx.array(values)
        changed[self._index] = function(values[self._index])
        return changed


class _Counts:
    """How many of each row's likeliest tokens count."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.most = max(counts, default=0)
        self._each = None if len(set(counts)) < 2 else mx.array([[count] for count in counts], mx.int32)

    def likeliest(self, logprobs: mx.array) -> mx.array:
        """(B, V) whether they do."""
        return likeliest(logprobs, self.most, self._each)


def _column(numbers: Sequence[float]) -> mx.array:
    return mx.array([[float(number)] for number in numbers], mx.float32)


def _places(tokens: Sequence[Sequence[int]], vocab_size: int) -> tuple[mx.array, mx.array] | None:
    """Each row's tokens as an index of (B, V), None if there are none."""
    found = [(i, token) for i, row in enumerate(tokens) for token in row if token < vocab_size]
    if not found:
        return None
    rows, columns = zip(*found, strict=True)
    return mx.array(rows), mx.array(columns)


def _keys(seeds: Sequence[int]) -> mx.array:
    """What `mx.random.key` makes of each seed, (B, 2)."""
    return mx.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], mx.uint32)
