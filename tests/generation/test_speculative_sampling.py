"""Above temperature 0, speculation draws from the distribution of plain decoding."""

import math
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx.generation import (
    DraftModel,
    PromptLookup,
    SamplingOptions,
    make_logits_processors,
    make_sampler,
)
from afmoe_mlx.generation.loop import Chooser
from afmoe_mlx.generation.speculate import SpeculativeDecoder, Tally
from helpers.drafting import Always


class Chain:
    """A stand-in for a model, whose next token depends on the last alone, by a table of logits (V, V)."""

    def __init__(self, seed: int, size: int, like: "Chain | None" = None) -> None:
        self.table = 1.5 * mx.random.normal((size, size), key=mx.random.key(seed))
        if like is not None:
            self.table = like.table + 0.5 * self.table
        self.config = SimpleNamespace(vocab_size=size, max_position_embeddings=10**9)

    def make_cache(self) -> "ChainCache":
        return ChainCache()

    def __call__(self, ids: mx.array, *, cache: "ChainCache", logits_to_keep: int = 0) -> mx.array:
        cache.offset += ids.shape[1]
        return self.table[ids][:, -logits_to_keep:]


class ChainCache:
    """As many tokens as were seen, all of which can be taken back."""

    offset = 0
    changes = 0
    arrays = ()

    @property
    def rewindable(self) -> int:
        return self.offset

    def rewindable_after(self, length: int) -> int:
        return self.offset + length

    def rewind(self, n: int) -> None:
        assert 0 <= n <= self.offset
        self.offset -= n


SIZE = 6

SETTINGS = [
    {"temperature": 0.6},
    {"top_p": 0.8, "min_p": 0.15},
    {"top_k": 3, "temperature": 1.3},
    {"repetition_penalty": 1.4, "repetition_context_size": 1},
    {"xtc_probability": 0.5, "xtc_threshold": 0.2},
]


def chance_of(options: SamplingOptions, logits: mx.array, last: int) -> np.ndarray:
    """(V,) the probability of each token after `last` in plain decoding, by the definition of each filter."""
    processed = logits[None]
    for processor in make_logits_processors(options):
        processed = processor(mx.array([last]), processed)
    p = np.array(mx.softmax(processed[0].astype(mx.float32)), dtype=np.float64)

    def kept(p: np.ndarray) -> np.ndarray:
        descending = np.argsort(-p)
        if options.top_p < 1:
            before = np.cumsum(p[descending]) - p[descending]
            p = np.where(np.isin(np.arange(SIZE), descending[before < options.top_p]), p, 0)
        return np.where(p >= options.min_p * p.max(), p, 0)

    def tempered(p: np.ndarray) -> np.ndarray:
        if options.top_k:
            p = np.where(p >= np.sort(p)[-options.top_k], p, 0)
        p = p ** (1 / options.temperature)
        return p / p.sum()

    p = kept(p)
    choices = p / p.sum() > options.xtc_threshold
    least = np.min(p[choices]) if choices.any() else 1.0
    excluded = np.where(p <= least, p, 0)
    share = options.xtc_probability
    return (1 - share) * tempered(p) + share * tempered(excluded)


# What a guess is compared with does not depend on who guessed: a draft model is tried with the plainest settings.
@pytest.mark.parametrize(
    ("drafts", "changes"), [("draft model", {}), *(("prompt lookup", changes) for changes in SETTINGS)], ids=str
)
def test_above_temperature_0_the_distribution_is_that_of_plain_decoding(drafts: str, changes: dict[str, Any]) -> None:
    """A chi-square test of the transitions of 1500 tokens of a chain, at a level of one in ten thousand."""
    options = SamplingOptions(**{"temperature": 1.0, "seed": 5, **changes})
    model: Any = Chain(1, SIZE)
    drafter: Any = DraftModel(Chain(2, SIZE, like=model), 3) if drafts == "draft model" else PromptLookup(3)
    cache: Any = model.make_cache()
    first = [0, 1]
    logits = model(mx.array([first]), cache=cache)[:, -1]
    drafter.begin(first)
    choose = Chooser(make_sampler(options), make_logits_processors(options), first)
    tally = Tally()
    decoder = SpeculativeDecoder(model, cache, choose, drafter, limit=1500, tally=tally, pace=Always(3, 4))
    answer = [1] + [token for token, _ in decoder.tokens(logits)]
    assert tally.accepted > 150
    counts = Counter(pairwise(answer))
    statistic, freedom = 0.0, 0
    for last in range(SIZE):
        chances = chance_of(options, model.table[last], last)
        total = sum(counts[last, token] for token in range(SIZE))
        for token, chance in enumerate(chances):
            assert chance > 0 or counts[last, token] == 0
            if chance * total >= 5:
                statistic += (counts[last, token] - chance * total) ** 2 / (chance * total)
                freedom += 1
    assert statistic < chi_square_bound(freedom)


def chi_square_bound(freedom: int) -> float:
    """The 0.9999 quantile of chi-square, by Wilson and Hilferty's approximation."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.719 * math.sqrt(part)) ** 3


def test_a_draft_model_is_accepted_nearly_as_often_as_the_distributions_overlap() -> None:
    model: Any = Chain(1, SIZE)
    draft: Any = Chain(2, SIZE, like=model)
    cache: Any = model.make_cache()
    drafter = DraftModel(draft, 1)
    drafter.begin([0])
    logits = model(mx.array([[0]]), cache=cache)[:, -1]
    tally = Tally()
    choose = Chooser(make_sampler(SamplingOptions(temperature=1.0, seed=3)), [], [0])
    pace = Always(1)
    pace.length = lambda most, behind=0: min(most, 1)  # type: ignore[method-assign]
    decoder = SpeculativeDecoder(model, cache, choose, drafter, limit=3000, tally=tally, pace=pace)
    answer = [token for token, _ in decoder.tokens(logits)]
    p, q = (np.array(mx.softmax(m.table, axis=-1)) for m in (model, draft))
    overlap = np.mean([np.minimum(p[t], q[t]).sum() for t in answer])
    assert tally.accepted / tally.drafted > 0.9 * overlap
