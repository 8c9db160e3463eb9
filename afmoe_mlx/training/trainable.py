"""What of a model is trained: changes of low rank beside its maps, or its weights themselves."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import InputError
from ..models import CausalLM
from ..models.linear import plain_weight
from ..values import listed
from .targets import EXPERT_MAPS, ROUTERS, sizes


class Kind(StrEnum):
    """How a model is changed; mlx-lm's names."""

    lora = "lora"
    dora = "dora"
    full = "full"


@dataclass(frozen=True)
class Change:
    """A change of low rank as mlx-lm describes it: x -> scale · (x a) b, a (in, rank), b (rank, out)."""

    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank is {self.rank}: expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}: expected 0 or more, and below 1")


def begin(model: CausalLM, kind: Kind, paths: Iterable[str], change: Change) -> None:
    """Freeze a model that is not fused, but for what is trained: changes of the maps at `paths`, or all of its layers.

    Of all of them, kind `full`, only routers that are not among `paths` stay as they are, and every `expert_bias`.
    Drawn from MLX's random numbers. InputError for what cannot be trained so.
    """
    model.freeze()
    modules = dict(model.named_modules())
    if kind is Kind.full:
        _unfreeze(model, set(paths))
        return
    for path in paths:
        _add(path, modules[path], change, is_dora=kind is Kind.dora)


def _add(path: str, module: nn.Module, change: Change, *, is_dora: bool) -> None:
    experts, inputs, outputs = sizes(module)
    is_of_experts = isinstance(module, EXPERT_MAPS)
    if is_dora and (is_of_experts or "global_scale" in module):
        raise InputError(f"{path}: DoRA is not for routed experts, nor for nvfp4 with global scales: train by LoRA")
    each = (experts,) if is_of_experts else ()
    bound = 1 / math.sqrt(inputs)
    module.lora_a = mx.random.uniform(-bound, bound, (*each, inputs, change.rank))
    module.lora_b = mx.zeros((*each, change.rank, outputs))
    module.lora_scale, module.lora_dropout = change.scale, change.dropout
    if is_dora:
        module.m = mx.linalg.norm(plain_weight(module).astype(mx.float32), axis=1)


def _unfreeze(model: CausalLM, paths: set[str]) -> None:
    quantized = [name for name, module in model.named_modules() if "scales" in module]
    if quantized:
        raise InputError(f"{quantized[0]} is quantized: full training needs plain weights, or train by lora or dora")
    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}."
        if any(path.startswith(prefix) for path in paths):
            layer.unfreeze()
            for name, module in layer.named_modules():
                if name in ROUTERS and prefix + name not in paths:
                    module.freeze()
                module.freeze(recurse=False, keys=["expert_bias"])


def trained(model: CausalLM) -> dict[str, mx.array]:
    """What is trained, by its names in mlx-lm's adapter files, in their shapes."""
    arrays = dict(tree_flatten(model.trainable_parameters()))
    return {name: _turned(name, array) for name, array in arrays.items()}


def restore(model: CausalLM, arrays: Mapping[str, mx.array], origin: str) -> None:
    """Go on from what `trained` gave; InputError, naming the origin, where it is of other maps or shapes."""
    held = dict(tree_flatten(model.trainable_parameters()))
    if strange := [name for name in arrays if name not in held] or [name for name in held if name not in arrays]:
        raise InputError(f"{origin}: {listed(strange)}: not what is to be trained; use the options it was made with")
    found = {name: _turned(name, array).astype(held[name].dtype) for name, array in arrays.items()}
    for name, array in found.items():
        if array.shape != held[name].shape:
            raise InputError(f"{origin}: {name} has shape {array.shape}: expected {held[name].shape}; use its --rank")
    model.update(tree_unflatten(list(found.items())))


def _turned(name: str, array: mx.array) -> mx.array:
    """Of experts' changes, which mlx-lm keeps the other way round: (E, rank, in) and (E, out, rank)."""
    is_change = name.endswith((".lora_a", ".lora_b"))
    return array.swapaxes(-1, -2) if is_change and array.ndim == 3 else array
