"""The loss of next tokens, without the logits of all positions at once."""

import mlx.core as mx
import mlx.nn as nn

from ..models import CausalLM

# Logits that are there at a time: a vocabulary of 200,000 makes 0.8 MB of each position's.
PIECE = 1 << 25


def summed_loss(model: CausalLM, tokens: mx.array, learned: mx.array) -> mx.array:
    """Cross-entropy in float32 of the tokens (B, L) that are learned (B, L), each from those before it, summed.

    The head has no gradient.
    """
    h = model.last_hidden_state(tokens[:, :-1])
    h = h.reshape(-1, h.shape[-1])
    targets, counted = tokens[:, 1:].reshape(-1), learned[:, 1:].reshape(-1)
    rows = max(PIECE // model.config.vocab_size, 1)
    if h.shape[0] <= rows:
        return _loss(model, h, targets, counted)
    return _in_pieces(model, h, targets, counted, rows)


def _loss(model: CausalLM, h: mx.array, targets: mx.array, counted: mx.array) -> mx.array:
    """Of hidden states (N, D)."""
    losses = nn.losses.cross_entropy(model.logits(h).astype(mx.float32), targets)
    return mx.where(counted, losses, 0).sum()


def _in_pieces(model: CausalLM, h: mx.array, targets: mx.array, counted: mx.array, rows: int) -> mx.array:
    """The same, the gradient being taken with the loss, and of `rows` positions before the next are begun."""
    gradient_too = mx.value_and_grad(lambda part, *rest: _loss(model, part, *rest))

    @mx.custom_function
    def loss_and_gradient(h: mx.array) -> tuple[mx.array, mx.array]:
        total, gradients = mx.array(0.0), []
        for start in range(0, h.shape[0], rows):
            part = slice(start, start + rows)
            (begun,) = mx.depends([h[part]], [total])
            loss, gradient = gradient_too(begun, targets[part], counted[part])
            (loss,) = mx.depends([loss], [gradient])
            total = total + loss
            gradients.append(gradient)
        return total, mx.concatenate(gradients)

    @loss_and_gradient.vjp
    def scaled(_: mx.array, cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]) -> mx.array:
        return (cotangents[0] * outputs[1]).astype(h.dtype)

    total: mx.array = loss_and_gradient(h)[0]  # type: ignore[index]
    return total
