"""Hidden states of an evaluation, kept on disk, so that one layer is in memory at a time."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..models import CausalLM, ModelConfig, Trace, fuse_layer
from ..models.chunk import Chunk


@dataclass(frozen=True)
class Stored:
    """An array in a Spill."""

    offset: int
    shape: tuple[int, ...]
    dtype: mx.Dtype


class Spill:
    """Arrays in a temporary file without a name: however the process ends, nothing of it is left."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._end = 0

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, array: mx.array, *, over: Stored | None = None) -> Stored:
        """Keep an array, in the place of another of its shape and dtype if told."""
        stored = over or Stored(self._end, array.shape, array.dtype)
        assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
        self._file.seek(stored.offset)
        self._file.write(memoryview(mx.contiguous(array).view(mx.uint8)))  # type: ignore[arg-type]
        self._end = max(self._end, stored.offset + array.nbytes)
        return stored

    def read(self, stored: Stored) -> mx.array:
        self._file.seek(stored.offset)
        data = self._file.read(prod(stored.shape) * stored.dtype.size)
        return mx.array(memoryview(data)).view(stored.dtype).reshape(stored.shape)  # type: ignore[arg-type]


@dataclass
class Activations:
    """Of each sequence of L tokens: the final norm's output (L, D), in the dtype that the model computes in, and the
    experts chosen (L, k) in each mixture-of-experts layer.

    They stand in for the logits, which take `vocab_size / hidden_size` times as much room, without loss.
    """

    hidden: list[Stored]
    experts: list[list[Stored]]


def record(model: CausalLM, sequences: Sequence[Sequence[int]], spill: Spill, tick: Callable[[], None]) -> Activations:
    """Run every sequence through a model a layer at a time, each sequence from an empty context.

    model: as `open_model` gives it, its weights not yet read. It is used up: a layer is read, and dropped when all
    sequences have passed it, so that a model larger than the memory runs too. tick: called after each sequence in each
    layer.
    """
    chunks = {length: Chunk(1, length, model._rope) for length in set(map(len, sequences))}
    _read(model.model.embed_tokens)
    hidden = [spill.write(model.scaled(model.embed(mx.array([[*tokens]])))[0]) for tokens in sequences]
    del model.model.embed_tokens
    experts: list[list[Stored]] = [[] for _ in sequences]
    layers = model.model.layers
    for index in range(len(layers)):
        layer, layers[index] = layers[index], nn.Module()
        _read(layer)
        fuse_layer(layer)
        _read(layer)
        for stored, chosen in zip(hidden, experts, strict=True):
            trace = Trace(keep=["selected_experts"])
            h = _run(layer, spill.read(stored)[None], chunks[stored.shape[0]], trace)
            spill.write(h[0], over=stored)
            chosen += [spill.write(array.astype(mx.uint32)) for array in trace.selected_experts]
            tick()
        del layer, h
        mx.clear_cache()
    for stored in hidden:
        spill.write(model.final_norm(spill.read(stored)), over=stored)
    return Activations(hidden, experts)


def nbytes_per_token(config: ModelConfig, dtype: mx.Dtype) -> int:
    """Bytes of a token's Activations."""
    sparse = config.num_hidden_layers - config.num_dense_layers
    return config.hidden_size * dtype.size + sparse * config.num_experts_per_tok * mx.uint32.size


def _run(layer: Any, h: mx.array, chunk: Chunk, trace: Trace) -> mx.array:
    """A decoder layer's output (1, L, D)."""
    attended = layer.attend(layer.project(h, chunk.place), chunk, None)
    h = layer.finish(h, attended, trace)
    mx.eval(h, trace.selected_experts)
    return h


def _read(module: nn.Module) -> None:
    """Evaluate weights one at a time, so that what each is made of is dropped before the next is read."""
    for array in dict(tree_flatten(module.parameters())).values():
        mx.eval(array)
