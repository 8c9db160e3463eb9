"""What a call of a model is given, and what of the logits it gives back."""

from numbers import Integral
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError


def shape_of(input_ids: mx.array | None, inputs_embeds: mx.array | None, hidden_size: int) -> tuple[int, int]:
    """(B, L) of whichever is given, ids or embeddings; InputError for both, neither, and what is no such array."""
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("give either input_ids or inputs_embeds, and one of them")
    if input_ids is None:
        assert inputs_embeds is not None
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != hidden_size:
            expected = f"(batch, length, {hidden_size})"
            raise InputError(f"inputs_embeds has shape {inputs_embeds.shape}: expected {expected}")
        return inputs_embeds.shape[0], inputs_embeds.shape[1]
    if input_ids.ndim != 2 or not mx.issubdtype(input_ids.dtype, mx.integer):
        raise InputError(f"input_ids is {input_ids.dtype} {input_ids.shape}: expected integers (batch, length)")
    return input_ids.shape[0], input_ids.shape[1]


def wants_all(logits_to_keep: Any) -> bool:
    """Whether those of all positions are asked for."""
    return isinstance(logits_to_keep, int) and logits_to_keep == 0


def last_columns(logits_to_keep: Any, length: int) -> int:
    """How many of the last of `length` columns `keep` takes at most; 0: all."""
    is_fewer = type(logits_to_keep) is int and 0 < logits_to_keep < length
    return logits_to_keep if is_fewer else 0


def keep(h: mx.array, logits_to_keep: Any) -> mx.array:
    """The positions of (B, L, …) that are asked for; InputError for what asks for none."""
    if isinstance(logits_to_keep, mx.array):
        if logits_to_keep.ndim not in (1, 2) or not mx.issubdtype(logits_to_keep.dtype, mx.integer):
            found = f"{logits_to_keep.dtype} {logits_to_keep.shape}"
            raise InputError(f"logits_to_keep is {found}: expected integers (columns,) or (batch, columns)")
        return h[:, logits_to_keep] if logits_to_keep.ndim == 1 else mx.take_along_axis(h, logits_to_keep[..., None], 1)
    if isinstance(logits_to_keep, bool) or not isinstance(logits_to_keep, Integral) or logits_to_keep < 0:
        raise InputError(f"logits_to_keep is {logits_to_keep!r}: expected 0 (all) or a number of last positions")
    return h[:, -int(logits_to_keep) :]


def causal_loss(logits: mx.array, labels: mx.array) -> mx.array:
    """Mean cross-entropy in float32 of each position's logits against the next label; -100 is ignored."""
    if labels.shape != logits.shape[:2]:
        raise InputError(f"labels has shape {labels.shape}: expected {logits.shape[:2]}, one for each position")
    targets = mx.concatenate([labels[:, 1:], mx.full((labels.shape[0], 1), -100, labels.dtype)], axis=1)
    counted = targets != -100
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), mx.where(counted, targets, 0))
    return (losses * counted).sum() / counted.sum()
