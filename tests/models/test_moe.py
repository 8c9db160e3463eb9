"""Routing: which experts a token goes to, and the weights of what they give, by the formula in float64."""

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx.models.moe import route


def expected(logits: np.ndarray, bias: np.ndarray, *, k: int, eps: float, scale: float) -> dict[int, float]:
    """The weight of each chosen expert of one token."""
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    chosen = np.argsort(-(scores + bias))[:k]
    total = scores[chosen].sum() + eps
    return {int(i): scale * scores[i] / total for i in chosen}


@pytest.mark.parametrize("eps", [1e-20, 1e-6])
@pytest.mark.parametrize("level", [2.0, -12.0, -30.0, -44.0])
@pytest.mark.parametrize("k", [1, 3])
def test_weights_are_normalized_as_the_reference_does_however_small_their_sum(k: int, level: float, eps: float) -> None:
    """From a sum beside which eps is nothing to one that it outweighs."""
    chance = np.random.default_rng(0)
    logits = (level + chance.standard_normal((5, 8))).astype(np.float32)
    bias = (1e-3 * chance.standard_normal(8)).astype(np.float32)
    weights, experts = route(mx.array(logits), mx.array(bias), k=k, normalize=True, eps=eps, scale=1.5)
    for token in range(5):
        found = dict(zip(experts[token].tolist(), weights[token].tolist(), strict=True))  # type: ignore[arg-type]
        assert found == pytest.approx(expected(logits[token], bias, k=k, eps=eps, scale=1.5), rel=1e-5, abs=0)


def test_scores_of_zero_give_weights_of_zero_and_no_nan() -> None:
    weights, _ = route(mx.full((1, 4), -200.0), None, k=2, normalize=True, eps=1e-20, scale=1.0)
    assert weights.tolist() == [[0.0, 0.0]]
