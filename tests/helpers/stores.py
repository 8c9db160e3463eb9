"""Prefix stores of tiny models, and runs to compare with."""

import mlx.core as mx
import numpy as np

from afmoe_mlx.cache import Cache, PrefixStore
from afmoe_mlx.models import CausalLM
from helpers.tiny import tokens

TOLERANCE = 2e-5


def ids(length: int, seed: int = 0) -> list[int]:
    return tokens(1, length, seed=seed)[0].tolist()  # type: ignore[return-value]


def run(model: CausalLM, sequence: list[int], cache: Cache | None = None) -> np.ndarray:
    return np.array(model(mx.array([sequence]), cache=cache))[0]


def seen(model: CausalLM, sequence: list[int], slack: int | None = None) -> Cache:
    cache = model.make_cache(slack)
    run(model, sequence, cache)
    return cache


def check(store: PrefixStore, sequence: list[int]) -> int:
    """That what is looked up continues as a cold run does; how many tokens were found."""
    cache, n = store.lookup(sequence)
    assert 0 <= n < len(sequence)
    assert cache.offset == n
    assert np.abs(run(store.model, sequence[n:], cache) - run(store.model, sequence)[n:]).max() < TOLERANCE
    return n
