"""Adapters put beside the weights of a model, which stay as they are."""

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import AdapterError
from ..models import ARCHITECTURES, CausalLM
from ..models.linear import Linear, QuantizedLinear, plain_weight
from ..models.moe import ExpertLinear, QuantizedExpertLinear
from ..values import listed
from .adapter import Adapter, LowRank, read_adapter


def adapting(paths: Sequence[str | Path], scale: float = 1.0) -> Callable[[CausalLM], None]:
    """What `load_model` is to do with a model before it is fused: add adapters, each `scale` times, to one another."""

    def adapt(model: CausalLM) -> None:
        for path in paths:
            apply(model, read_adapter(path, model_type_of(model)), scale)

    return adapt


def model_type_of(model: CausalLM) -> str:
    """The architecture's name, as in `config.json`."""
    return next(name for name, (config, _) in ARCHITECTURES.items() if isinstance(model.config, config))


def apply(model: CausalLM, adapter: Adapter, scale: float = 1.0) -> None:
    """Put an adapter beside the weights of a model that is not fused, or replace those that it has whole.

    Nothing is evaluated. AdapterError, and nothing changes, for an adapter that does not fit the model.
    """
    modules = dict(model.named_modules())
    if foreign := [path for path in adapter.changes if path not in modules]:
        raise AdapterError(
            f"{adapter.folder}: {listed(foreign)}: not in this model, which the adapter was not made for"
        )
    made = {path: _checked(adapter, path, modules[path]) for path in adapter.changes}
    weights = _replaced(model, adapter)
    for path, change in made.items():
        _add(modules[path], change, model.dtype, scale)
    if weights:
        model.update(tree_unflatten(list(weights.items())))


def _checked(adapter: Adapter, path: str, module: nn.Module) -> LowRank:
    change = adapter.changes[path]
    if not isinstance(module, Linear | QuantizedLinear | ExpertLinear | QuantizedExpertLinear):
        raise AdapterError(f"{adapter.folder}: {path} is {type(module).__name__}: expected a linear map")
    *experts, out, width = module.weight.shape
    width = width * 32 // module.bits if "scales" in module else width
    a, b = change.a.shape, change.b.shape
    expected = (*experts, width), (*experts, out)
    if experts and len(a) == 3 and a[0] > experts[0]:
        raise AdapterError(f"{adapter.folder}: {path}: an adapter of experts needs all of them in memory")
    if (a[:-1], (*b[:-2], *b[-1:])) != expected or a[-1:] != b[-2:-1]:
        raise AdapterError(f"{adapter.folder}: {path} has shapes {a} and {b}: expected {width} in, {out} out")
    if change.magnitude is not None:
        if experts or change.magnitude.shape != (out,) or "global_scale" in module:
            raise AdapterError(f"{adapter.folder}: {path}: DoRA does not fit here: expected a length for {out} outputs")
        if "lora_a" in module:
            raise AdapterError(f"{adapter.folder}: {path} is adapted already: DoRA is for one adapter alone")
    if "lora_m" in module:
        raise AdapterError(f"{adapter.folder}: {path} has a DoRA adapter: DoRA is for one adapter alone")
    return change


def _add(module: nn.Module, change: LowRank, dtype: mx.Dtype, scale: float) -> None:
    a, b = change.a.astype(dtype), (scale * change.b).astype(dtype)
    if "lora_a" in module:
        a, b = mx.concatenate([module.lora_a, a], axis=-1), mx.concatenate([module.lora_b, b], axis=-2)
    module.lora_a, module.lora_b = a, b
    if change.magnitude is not None:
        changed = plain_weight(module).astype(mx.float32) + (change.a @ (scale * change.b)).T
        module.lora_m = (change.magnitude / mx.linalg.norm(changed, axis=1)).astype(dtype)


def _replaced(model: CausalLM, adapter: Adapter) -> dict[str, mx.array]:
    """The weights that an adapter has whole, in the dtypes of those they replace."""
    held = dict(tree_flatten(model.parameters()))
    for name, array in adapter.weights.items():
        if name not in held or held[name].shape != array.shape:
            found = "not in this model" if name not in held else f"has shape {array.shape}, expected {held[name].shape}"
            raise AdapterError(f"{adapter.folder}: {listed([name])}: {found}")
    return {name: array.astype(held[name].dtype) for name, array in adapter.weights.items()}
