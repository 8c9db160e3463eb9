"""Optimizers and schedules of the learning rate, by mlx-lm's names."""

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers

from ..errors import InputError
from ..values import listed, shown


class OptimizerName(StrEnum):
    """Those of mlx_lm.lora."""

    adam = "adam"
    adamw = "adamw"
    muon = "muon"
    sgd = "sgd"
    adafactor = "adafactor"


CLASSES = {
    OptimizerName.adam: mlx.optimizers.Adam,
    OptimizerName.adamw: mlx.optimizers.AdamW,
    OptimizerName.muon: mlx.optimizers.Muon,
    OptimizerName.sgd: mlx.optimizers.SGD,
    OptimizerName.adafactor: mlx.optimizers.Adafactor,
}
SCHEDULES = ("cosine_decay", "exponential_decay", "linear_schedule", "step_decay")


def make_optimizer(
    name: OptimizerName,
    learning_rate: float,
    schedule: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> mlx.optimizers.Optimizer:
    """An optimizer with its options; schedule: mlx-lm's `lr_schedule`, in place of the learning rate."""
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate is {learning_rate}: expected more than 0")
    rate = learning_rate if schedule is None else _scheduled(schedule)
    weight = {"weight": mx.zeros((1, 1))}
    try:
        make = partial(CLASSES[name], learning_rate=rate, **(options or {}))
        make().apply_gradients(weight, weight)  # some options fail when they are used
        return make()
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer_config.{name}: {error}") from None


def _scheduled(schedule: Mapping[str, Any]) -> Callable[[mx.array], mx.array]:
    if strange := schedule.keys() - {"name", "arguments", "warmup", "warmup_init"}:
        raise InputError(f"lr_schedule has {listed(strange)}: expected name, arguments, warmup, warmup_init")
    name, arguments = schedule.get("name"), schedule.get("arguments")
    if name not in SCHEDULES or not isinstance(arguments, list) or not arguments:
        expected = f"one of {', '.join(SCHEDULES)} with a list of arguments, the first learning rate first"
        raise InputError(f"lr_schedule is {shown(name)} of {shown(arguments)}: expected {expected}")
    try:
        made = getattr(mlx.optimizers, name)(*arguments)
        if steps := schedule.get("warmup", 0):
            rising = mlx.optimizers.linear_schedule(schedule.get("warmup_init", 0.0), arguments[0], steps)
            made = mlx.optimizers.join_schedules([rising, made], [steps + 1])
        made(mx.array(0))  # some arguments fail when they are used
        return made
    except (TypeError, ValueError) as error:
        raise InputError(f"lr_schedule: {error}") from None
