"""What adapters take of memory beside a model's weights."""

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import mlx.core as mx

from ..models import ModelConfig, joined_with, make_model
from .adapter import read_adapter
from .apply import model_type_of

# What a low-rank change belongs to in a fused model: a module, and those of its maps that are one there.
Place = tuple[str, tuple[str, ...]]


def counting(paths: Sequence[str | Path]) -> Callable[[ModelConfig, mx.Dtype], tuple[int, int]]:
    """What tells the bytes of adapters beside a config's model that computes in a dtype, from their headers alone.

    Two figures: in memory, and read by one decoded token at batch 1. A model that is fused has no more; it has less
    where the formats of maps that might be one do not agree. Raises the errors of `read_adapter`.
    """

    def count(config: ModelConfig, dtype: mx.Dtype) -> tuple[int, int]:
        model = make_model(config)
        modules, kind = dict(model.named_modules()), model_type_of(model)
        ranks: Counter[Place] = Counter()
        scaled: set[Place] = set()
        for path in paths:
            for place, change in read_adapter(path, kind).changes.items():
                parent, _, name = place.rpartition(".")
                if place in modules and "weight" in modules[place]:  # what is not is refused when it is applied
                    joined = parent, joined_with(modules[parent], name)
                    ranks[joined] += change.a.shape[-1]
                    scaled |= set() if change.magnitude is None else {joined}
        held = read = 0
        for (parent, names), rank in ranks.items():
            shapes = [modules[f"{parent}.{name}".lstrip(".")].weight.shape for name in names]
            outputs, experts = sum(shape[-2] for shape in shapes), prod(shapes[0][:-2])
            of_one = (rank * (shapes[0][-1] + outputs) + outputs * ((parent, names) in scaled)) * dtype.size
            held += experts * of_one
            read += min(experts, config.num_experts_per_tok) * of_one
        return held, read

    return count
