"""Narrow models: the layers of a published one at a width where arithmetic costs nothing, ours and mlx-lm's alike."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint.random import random_model
from afmoe_mlx.models import CausalLM, fuse, read_config
from afmoe_mlx.models.shapes import shape

WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "moe_intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 1024,
    "sliding_window": 256,
}


def narrow_config(**changes: Any) -> dict[str, Any]:
    """Trinity Nano's config with a hidden size of 64 and a window of 256."""
    return shape("trinity-nano") | WIDTHS | changes


def narrow_model(*, fused: bool = True, **changes: Any) -> CausalLM:
    """A narrow model in float32."""
    return random_model(read_config(narrow_config(**changes)), dtype=mx.float32, fuse=fused)


def narrow_pair(**changes: Any) -> tuple[CausalLM, Any]:
    """A narrow model as we load it, fused, and mlx-lm's module with the same weights."""
    from mlx_lm.models.afmoe import Model, ModelArgs

    model = narrow_model(fused=False, **changes)
    theirs = Model(ModelArgs.from_dict(narrow_config(**changes)))
    theirs.load_weights(tree_flatten(model.parameters()))
    theirs.eval()
    mx.eval(theirs.parameters())
    return fuse(model), theirs


def alternated(runs: int, *functions: Callable[[], Any]) -> list[list[Any]]:
    """What each function gives in `runs` rounds, the functions taking turns, each round in another order."""
    results: list[list[Any]] = [[] for _ in functions]
    for i in range(runs):
        order = range(len(functions)) if i % 2 == 0 else reversed(range(len(functions)))
        for j in order:
            results[j].append(functions[j]())
    return results


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of rounds: what stays when the machine's speed drifts."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
