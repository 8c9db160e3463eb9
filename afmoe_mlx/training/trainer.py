"""`Trainer`: steps of an optimizer on a model's trainable parameters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from ..device import is_cpu
from ..models import CausalLM
from .batches import Batch
from .group import Group
from .loss import summed_loss

# What sums over a batch's tokens are divided by while they are gradients, which float16 would not hold.
SCALE = 1024


@dataclass(frozen=True)
class Loss:
    """A sum over `tokens`, those of all processes."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.total / max(self.tokens, 1)

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.total + other.total, self.tokens + other.tokens)


class Trainer:
    """Learns a batch at a time; the gradients of several may make one update.

    An update is by the mean over all tokens that were learned since the last, of all processes: neither how they were
    parted into batches nor among processes changes it. The model must not be fused, and what is trained of it begun.
    """

    def __init__(self, model: CausalLM, optimizer: mlx.optimizers.Optimizer, group: Group) -> None:
        self.model, self.optimizer, self.group = model, optimizer, group
        optimizer.init(model.trainable_parameters())
        self._gathered: tuple[Any, mx.array] | None = None
        self._state: list[Any] = [model.state, optimizer.state, mx.random.state]
        # the CPU's compiler takes half a minute, and what it makes is no faster
        self._step = self._take if is_cpu() else mx.compile(self._take, inputs=self._state, outputs=self._state)
        model.train()

    def learn(self, batch: Batch, *, updates: bool) -> tuple[Loss, bool]:
        """Take a batch's gradients, and with `updates` an update by those since the last; its loss before that.

        What dropout leaves out is drawn from MLX's random numbers.

        Also whether all was finite: if not, nothing of the model is worth keeping.
        """
        total, tokens, size, self._gathered = self._step(batch.tokens, batch.learned, self._gathered, updates)
        mx.eval(self._state, total, tokens, size, self._gathered)
        return Loss(total.item(), int(tokens.item())), bool(mx.isfinite(total + size).item())

    def _take(self, tokens: mx.array, learned: mx.array, before: Any, updates: bool) -> tuple[Any, ...]:
        loss, gradients = nn.value_and_grad(self.model, self._scaled_loss)(tokens, learned)
        count = learned[:, 1:].sum()
        everyone = self.group.sum(mx.stack([SCALE * loss, count.astype(mx.float32)]))
        if before is not None:
            gradients = tree_map(mx.add, gradients, before[0])
            count = count + before[1]
        largest = [mx.abs(g).max().astype(mx.float32) for g in dict(tree_flatten(gradients)).values()]
        size = sum(largest, mx.array(0.0))
        if not updates:
            return everyone[0], everyone[1], size, (gradients, count)
        each = SCALE / mx.maximum(self.group.sum(count), 1)
        gradients = tree_map(lambda g: g * each.astype(g.dtype), self.group.sum_gradients(gradients))
        self.optimizer.update(self.model, gradients)
        return everyone[0], everyone[1], size, None

    def _scaled_loss(self, tokens: mx.array, learned: mx.array) -> mx.array:
        return summed_loss(self.model, tokens, learned) / SCALE

    def state(self) -> dict[str, mx.array]:
        """All that an exact continuation needs besides the parameters, between two updates."""
        assert self._gathered is None
        return dict(tree_flatten(self.optimizer.state))

    def restore(self, state: Mapping[str, mx.array]) -> None:
        """Go on from what `state` gave; KeyError for that of another optimizer."""
        self.optimizer.state.update(tree_map_with_path(lambda path, _: state[path], self.optimizer.state))


def loss_of(model: CausalLM, batches: Iterable[Batch], group: Group) -> Loss:
    """The loss of batches that are not learned, those of all processes together."""
    was_training = model.training
    model.eval()
    found = Loss(0.0, 0)
    for batch in batches:
        loss = summed_loss(model, batch.tokens, batch.learned)
        both: list[float]
        both = group.sum(mx.stack([loss, batch.learned[:, 1:].sum().astype(mx.float32)])).tolist()  # type: ignore[assignment]
        found += Loss(both[0], int(both[1]))
        mx.clear_cache()
    model.train(was_training)
    return found
