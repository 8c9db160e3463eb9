"""A prompt through a model that reads its experts: layer by layer, so that each is read once for all of the tokens.

Only hidden states are kept between layers. The bits are those of the prompt's chunks run one after the other.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import mlx.core as mx

from .. import device
from ..cache import Cache, KVCache
from .causal_lm import CausalLM
from .chunk import Chunk
from .streamed import Routed, is_streamed


def sweep(
    model: CausalLM,
    tokens: Sequence[int],
    cache: Cache,
    *,
    step_size: int,
    on_layer: Callable[[int], None] | None = None,
) -> mx.array:
    """Run the tokens of one row, computed in chunks of `step_size`: the logits (1, vocab) after the last.

    on_layer: called with the number of layers done; what it raises ends the sweep. Raises AfmoeError for an expert that
    cannot be read. In either case the cache is as it was before, or, with layers beyond, has seen all of the tokens.
    """
    starts = range(0, len(tokens), step_size)
    with ExitStack() as step, cache.restored_on_failure(len(tokens)):
        parts = [tokens[start : start + step_size] for start in starts]
        chunks = [model.chunk((1, len(part)), cache, ahead=start) for part, start in zip(parts, starts, strict=True)]
        embeddings = [model.scaled(model.embed(mx.array([part]))) for part in parts]
        h = sweep_layers(model, embeddings, chunks, cache, on_layer)
        last: mx.array | None = h[-1][:, -1:]
        if model.beyond is not None:
            # ends after the cache is safe from being restored: what comes meanwhile is heard when all have the tokens
            step.enter_context(model.beyond.at_once())
            last = model.beyond(h, chunks, 1)
    assert last is not None
    return model.logits(model.final_norm(last))[:, -1]


def sweep_layers(
    model: CausalLM,
    h: Sequence[mx.array],
    chunks: Sequence[Chunk],
    cache: Cache,
    on_layer: Callable[[int], None] | None = None,
) -> Sequence[mx.array]:
    """The outputs (1, L, D) of the layers here, of chunks that follow one another; the arguments are `sweep`'s."""
    for done, (layer, layer_cache) in enumerate(zip(model.layers, cache.layers, strict=True), 1):
        h = _through(layer, h, chunks, layer_cache)
        if on_layer is not None:
            on_layer(done)
    return h


def sweeps(model: Any) -> bool:
    """Whether prompts are for `sweep`: the model is one of ours, and reads its experts."""
    return getattr(model, "reads_experts", False)


def sweep_length(model: CausalLM) -> int:
    """Tokens of a prompt to sweep at once: as many as have room, with what a layer's experts make of each."""
    config = model.config
    token = (config.num_experts_per_tok + 4) * config.hidden_size * model.dtype.size
    room = device.PREFILL_ROOM // 2  # the rest is for a chunk's work
    return max(room // token, device.PREFILL_STEP)


def _through(layer: Any, h: Sequence[mx.array], chunks: Sequence[Chunk], cache: KVCache) -> list[mx.array]:
    """A layer's outputs (1, L, D) for all chunks, evaluated one by one: none works in more room than it would alone."""
    made: list[mx.array] = []
    routed: list[Routed] = []
    for part, chunk in zip(h, chunks, strict=True):
        attended = layer.attend(layer.project(part, chunk.place, chunk.valid), chunk, cache)
        if is_streamed(layer):
            part, x = layer.before_mlp(part, attended)
            routed.append((x, *layer.sparse.choose(x)))
        else:
            part = layer.finish(part, attended)
        made.append(part)
        mx.eval(part, routed[-1:], cache.arrays)
    if routed:
        experts = layer.sparse[layer.sparse.ROUTED]
        for i, (y, (x, *_)) in enumerate(zip(experts.over(routed), routed, strict=True)):
            made[i] = layer.after_mlp(made[i], layer.sparse.with_shared(x, y))
            mx.eval(made[i])
    mx.clear_cache()
    return made
