"""Which of a model's maps are trained."""

from collections.abc import Iterator, Sequence

import mlx.nn as nn

from ..errors import InputError
from ..models import CausalLM
from ..models.linear import Linear, QuantizedLinear
from ..models.moe import ExpertLinear, QuantizedExpertLinear
from ..values import listed

MAPS = Linear | QuantizedLinear
EXPERT_MAPS = ExpertLinear | QuantizedExpertLinear

# What chooses the experts: `gate` of AFMoE's router and of LFM2's mixture.
ROUTERS = ("mlp.router.gate", "feed_forward.gate")


def targets_of(
    model: CausalLM,
    *,
    names: Sequence[str] = (),
    experts: bool = False,
    router: bool = False,
    layers: int = -1,
) -> dict[str, list[str]]:
    """The paths of the maps to train in the last `layers` layers (-1: all), by their names within a layer.

    By default those of attention or convolution, of dense and of shared MLPs. experts: routed ones besides; router:
    what chooses them besides. names: these instead, such as "self_attn.q_proj" or "q_proj". InputError for more layers
    than there are, for a name that is of no map, and for names with experts or router.
    """
    if names and (experts or router):
        raise InputError("the maps to train are named one by one: name those of experts or routers, too")
    count = len(model.layers)
    if layers == 0 or layers < -1 or layers > count:
        raise InputError(f"num_layers is {layers}: expected 1 to {count}, the model's layers, or -1 for all")
    found: dict[str, list[str]] = {}
    known: dict[str, None] = {}
    matched: set[str] = set()
    first = 0 if layers == -1 else count - layers
    for i, layer in enumerate(model.layers):
        for name, module in maps_of(layer):
            known[name] = None
            hits = {given for given in names if name == given or name.endswith(f".{given}")}
            matched |= hits
            is_meant = hits if names else _is_default(name, module, experts=experts, router=router)
            if i >= first and is_meant:
                found.setdefault(name, []).append(f"model.layers.{i}.{name}")
    if strange := [name for name in names if name not in matched]:
        raise InputError(f"no map is called {listed(strange)}: expected some of {', '.join(known)}")
    if not found:
        raise InputError("the layers to train have none of the maps named: take more layers or other names")
    return found


def maps_of(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear maps of a layer, each with its name in it."""
    for name, module in sorted(layer.named_modules()):
        if isinstance(module, MAPS | EXPERT_MAPS):
            yield name, module


def sizes(module: nn.Module) -> tuple[int, int, int]:
    """(experts, inputs, outputs) of a map, which has 1 expert if it is for all tokens."""
    *experts, out, width = module.weight.shape
    width = width * 32 // module.bits if "scales" in module else width
    return experts[0] if experts else 1, width, out


def _is_default(name: str, module: nn.Module, *, experts: bool, router: bool) -> bool:
    if isinstance(module, EXPERT_MAPS):
        return experts
    return router if name in ROUTERS else True
