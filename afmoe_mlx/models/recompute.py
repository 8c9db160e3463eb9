"""A layer whose activations are computed again for its gradient, rather than kept."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn


def recomputed(layer: nn.Module, step: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
    """`step`, which runs a layer on hidden states, so that of each run its input alone is kept for the gradient."""

    def run(parameters: dict, h: mx.array) -> mx.array:
        own = layer.trainable_parameters()
        layer.update(parameters)
        try:
            return step(h)
        finally:
            layer.update(own)  # or the layer would keep what this run alone knows

    checkpointed = mx.checkpoint(run)
    return lambda h: checkpointed(layer.trainable_parameters(), h)
