"""Tiny random models, made in memory."""

from typing import Any

import mlx.core as mx
import numpy as np
from checkpoints import weight
from grid import AFMOE, LFM2
from mlx.utils import tree_map_with_path

from afmoe_mlx.models import CausalLM, make_model, read_config

BASES = {"afmoe": AFMOE, "lfm2_moe": LFM2}
ARCHITECTURES = tuple(BASES)


def tiny(model_type: str = "afmoe", **changes: Any) -> CausalLM:
    """An unfused model of the grid's base shape with reproducible weights; config keys may be changed."""
    model = make_model(read_config({"model_type": model_type} | BASES[model_type] | changes))
    model.update(tree_map_with_path(_values, model.parameters()))
    return model


def _values(name: str, array: mx.array) -> mx.array:
    shape = list(array.shape)
    if array.ndim == 3 and "conv" not in name:  # stacked experts: each its own fan-in
        return mx.array(np.stack([weight(f"{name}{i}", shape[1:]) for i in range(shape[0])]))
    return mx.array(weight(name, shape))


def tokens(batch: int, length: int, *, seed: int = 0, vocab: int = 40) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, vocab, (batch, length)))
