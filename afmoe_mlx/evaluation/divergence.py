"""Perplexity of a model, and KL divergence between two models' predictions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

# Logits of one model that are held at a time.
PIECE = 1 << 23

# The final norm's output (L, D) -> logits (L, vocab) in float32.
Head = Callable[[mx.array], mx.array]


@dataclass
class Predictions:
    """Of every predicted token: its negative log-likelihood in nats; and against a reference its own, the divergence
    KL(reference ‖ model) in nats, and whether both find the same token likeliest."""

    losses: list[float] = field(default_factory=list)
    reference_losses: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    agreements: list[bool] = field(default_factory=list)

    def add(self, targets: mx.array, logits: mx.array, reference: mx.array | None = None) -> None:
        """Count tokens `targets` (L,) by the logits (L, vocab) of a model and of a reference."""
        log_q = _log_softmax(logits)
        found = [_losses(log_q, targets)]
        if reference is not None:
            log_p = _log_softmax(reference)
            agreements = mx.argmax(log_p, axis=-1) == mx.argmax(log_q, axis=-1)
            found += [_losses(log_p, targets), divergence(log_p, log_q), agreements]
        mx.eval(found)
        lists: tuple[list[Any], ...] = self.losses, self.reference_losses, self.divergences, self.agreements
        for values, array in zip(lists, found, strict=False):
            values += array.tolist()  # type: ignore[arg-type]


def pieces(length: int, vocab_size: int) -> Iterator[slice]:
    """Positions 0 to `length`, as many at a time as their logits may be held."""
    step = max(PIECE // vocab_size, 1)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def divergence(log_p: mx.array, log_q: mx.array) -> mx.array:
    """KL(p ‖ q) in nats of log-probabilities (…, vocab) in float32 -> (…)."""
    p, q = mx.exp(log_p), mx.exp(log_q)
    # q - p sums to zero but for rounding, and cancels what rounding the logarithms does to the first term
    return mx.maximum((p * (log_p - log_q) + (q - p)).sum(axis=-1), 0)


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _losses(log_q: mx.array, targets: mx.array) -> mx.array:
    return -mx.take_along_axis(log_q, targets[:, None], axis=-1)[:, 0]


def overlap(experts: mx.array, reference: mx.array) -> mx.array:
    """The share of the reference's chosen experts (…, k) that are among `experts` too: (…)."""
    shared = (reference[..., None] == experts[..., None, :]).any(axis=-1)
    return shared.astype(mx.float32).mean(axis=-1)
