"""Bytes of a model's weights: on disk, in memory, and read for each token."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.files import DTYPES, StoredTensor
from ..checkpoint.layouts import is_extra
from ..checkpoint.quantized import quantize_all
from ..models import CausalLM, ModelConfig, make_model

Headers = Mapping[str, StoredTensor]

FLOATS = (mx.bfloat16, mx.float16, mx.float32)
EMBEDDINGS = "model.embed_tokens"


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights."""

    stored: int
    """In the safetensors files."""
    held: int
    """In memory."""
    read: int
    """Of those in memory, by one decoded token at batch 1."""


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has, as published: quantized ones count as what they stand for, scales do not."""

    total: int
    active: int
    """Taken part in by one token: all but the experts not chosen and, unless it is the head too, all rows but one of
    the embedding table."""


def count_parameters(config: ModelConfig) -> Parameters:
    """The parameters of a config's model, none of which is made."""
    sizes = {name: array.size for name, array in _arrays(make_model(config)).items()}
    return Parameters(sum(sizes.values()), _active(sizes, config))


def stored_weights(config: ModelConfig, headers: Headers, dtype: mx.Dtype) -> Weights:
    """The weights of a checkpoint, in any layout, loaded to compute in `dtype`."""
    tied = config.tie_word_embeddings
    counts = {name: prod(tensor.shape) for name, tensor in headers.items()}
    held = {
        name: counts[name] * loaded_dtype(name, DTYPES[tensor.dtype], dtype, config).size
        for name, tensor in headers.items()
        if not is_extra(name, tensor.shape, tied=tied)
    }
    stored = sum(tensor.nbytes for tensor in headers.values())
    return Weights(stored, sum(held.values()), _active(held, config))


def converted_weights(config: ModelConfig, dtype: mx.Dtype, *, bits: int | None) -> Weights:
    """The weights of a config's model as our converter would write it with `bits` bits, none of which is made.

    bits: None for weights in `dtype`.
    """
    arrays = converted_arrays(config, dtype, bits=bits)
    stored = {name: array.nbytes for name, array in arrays.items()}
    wide = {name: array.size * mx.float32.size for name, array in arrays.items() if config.is_float32(name)}
    held = stored | wide
    return Weights(sum(stored.values()), sum(held.values()), _active(held, config))


def converted_arrays(config: ModelConfig, dtype: mx.Dtype, *, bits: int | None) -> dict[str, mx.array]:
    """The tensors of `converted_weights` by name, which nothing has evaluated."""
    model = make_model(config)
    nn.Module.set_dtype(model, dtype)  # all of it, as it is stored
    if bits is not None:
        quantize_all(model, {"bits": bits, "group_size": 64, "mode": "affine"})
    return _arrays(model)


def _arrays(model: CausalLM) -> dict[str, mx.array]:
    """A model's weights, which nothing has evaluated."""
    return dict(tree_flatten(model.parameters()))


def _active(sizes: Mapping[str, int], config: ModelConfig) -> int:
    """Of tensors with so many bytes, or weights, what one token reads."""
    experts = sum(size for name, size in sizes.items() if ".experts." in name or ".switch_mlp." in name)
    idle = experts - experts * config.num_experts_per_tok // config.num_experts
    if not config.tie_word_embeddings:
        table = sum(size for name, size in sizes.items() if name.startswith(f"{EMBEDDINGS}."))
        idle += table - table // config.vocab_size
    return sum(sizes.values()) - idle


def loaded_dtype(name: str, stored: mx.Dtype, dtype: mx.Dtype, config: ModelConfig) -> mx.Dtype:
    """What the loader makes of a tensor."""
    if stored not in FLOATS or name.endswith("global_scale"):
        return stored
    return mx.float32 if config.is_float32(name) else dtype
