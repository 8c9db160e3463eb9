"""Quantization-aware training: the rounding of MLX's affine quantization in the forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

BITS, GROUP_SIZE = 4, 64


def quantizable(model: Any) -> list[torch.Tensor]:
    """The weights that `afmoe-mlx convert -q` quantizes: all but norms, routers and expert biases."""
    named = model.named_parameters()
    return [p for name, p in named if p.dim() > 1 and not name.endswith("router.gate.weight")]


def affine(weight: torch.Tensor) -> torch.Tensor:
    """The weight after quantization in groups along its last dimension, as `mx.quantize` rounds it."""
    groups = weight.reshape(-1, GROUP_SIZE)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    low_is_edge = low.abs() > high.abs()
    scale = ((high - low) / (2**BITS - 1)).clamp_min(1e-7)
    scale = torch.where(low_is_edge, scale, -scale)
    edge = torch.where(low_is_edge, low, high)
    steps = torch.round(edge / scale)
    scale = torch.where(steps == 0, scale, edge / steps)
    offset = torch.where(steps == 0, torch.zeros_like(edge), edge)
    scale, offset = scale.bfloat16().float(), offset.bfloat16().float()
    levels = torch.round((groups - offset) / scale).clamp(0, 2**BITS - 1)
    return (levels * scale + offset).reshape(weight.shape)


@contextmanager
def rounded(weights: list[torch.Tensor], on: bool = True) -> Iterator[None]:
    """Inside, the weights are quantized; gradients then go to the full ones (straight through)."""
    if not on:
        yield
        return
    full = [weight.data for weight in weights]
    for weight in weights:
        weight.data = affine(weight.data)
    try:
        yield
    finally:
        for weight, data in zip(weights, full, strict=True):
            weight.data = data
