"""Rewriting a model for inference: fewer, larger products that compute the same numbers.

Queries, keys, values and the attention gate become one projection, gate and up of an MLP or of the experts another, and
the shared experts stand behind the routed ones. What is quantized differently stays apart. Training, calibration and
saving use the unfused form.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..device import fuses_experts
from .layers import MLP, HeadNorm
from .moe import Experts

# The maps that become one, by the names that a module has for them: the first that all are there.
QKVG = ("q_proj", "k_proj", "v_proj", "gate_proj")
QKV = QKVG[:3]
GATE_UP = ("gate_proj", "up_proj")


def fuse(model: nn.Module) -> nn.Module:
    """Fuse every layer of a model in place, and return it; what is fused already stays."""
    for layer in model.model.layers:
        fuse_layer(layer)
    return model


def fuse_layer(layer: nn.Module) -> None:
    """Fuse one decoder layer in place, all but routed experts of a size that this device leaves as they are."""
    if "self_attn" in layer:
        attention = layer.self_attn
        if "gate_proj" in attention:
            _join(attention, QKVG, "qkvg_proj")
            _join_norms(attention, "qkvg_proj", ("q_norm", "k_norm"), "qk_norm")
        else:
            _join(attention, QKV, "qkv_proj")
            _join_norms(attention, "qkv_proj", ("q_layernorm", "k_layernorm"), "qk_layernorm")
    mlp = layer.mlp if "mlp" in layer else layer.feed_forward
    if isinstance(mlp, MLP):
        _join(mlp, GATE_UP, "gate_up_proj")
        return
    experts = mlp.experts if "experts" in mlp else mlp.switch_mlp
    if not isinstance(experts, Experts):  # read into slots, which stay as they were made
        if "shared_experts" in mlp:
            _join(mlp.shared_experts, GATE_UP, "gate_up_proj")
        return
    held = sum(array.nbytes for array in dict(tree_flatten(experts.parameters())).values())
    # by the size of all of them, where there is room for some
    is_fused = fuses_experts(held * experts.num_experts // experts.down_proj.weight.shape[0])
    if "shared_experts" in mlp and not (is_fused and _move_shared(mlp)):
        _join(mlp.shared_experts, GATE_UP, "gate_up_proj")
    if is_fused:
        _join(experts, GATE_UP, "gate_up_proj")


def joined_with(parent: nn.Module, name: str) -> tuple[str, ...]:
    """The maps of `parent` that become one with the map `name`, that itself among them, if their formats agree."""
    found = (names for names in (QKVG, QKV, GATE_UP) if name in names and all(each in parent for each in names))
    return next(found, (name,))


def _quantization(module: Any) -> tuple[int, int, str] | None:
    return (module.group_size, module.bits, module.mode) if "scales" in module else None


def _join(parent: nn.Module, names: Sequence[str], fused_name: str) -> None:
    """Replace the maps `names` of `parent` by one whose outputs are theirs in order, if their quantization agrees."""
    if any(name not in parent for name in names):
        return
    maps = [parent[name] for name in names]
    if len({(_quantization(m), "global_scale" in m) for m in maps}) > 1:
        return
    if "global_scale" in maps[0] and maps[0].weight.ndim > 2:  # an expert has one for all of its outputs
        return
    fused, widths = maps[0], [m.weight.shape[-2] for m in maps]
    if any("bias" in m for m in maps):
        dtype = next(m.bias.dtype for m in maps if "bias" in m)
        fused.bias = mx.concatenate([m.bias if "bias" in m else mx.zeros(m.weight.shape[:1], dtype) for m in maps])
    for key in ("weight", "scales", "biases"):
        if fused.get(key) is not None:
            fused[key] = mx.concatenate([m[key] for m in maps], axis=-2)
    if any("lora_a" in m for m in maps):
        _join_adapters(fused, maps, widths)
    if "global_scale" in fused:
        fused.global_scale = mx.concatenate([m.global_scale for m in maps])
    for name in names:
        del parent[name]
    parent[fused_name] = fused


def _join_adapters(fused: nn.Module, maps: Sequence[nn.Module], widths: Sequence[int]) -> None:
    """Give the joined map the changes of each: their ranks side by side, each for its own outputs alone."""
    below, parts_a, parts_b = 0, [], []
    for m, width in zip(maps, widths, strict=True):
        if "lora_a" in m:
            parts_a.append(m.lora_a)
            before = [(0, 0)] * (m.lora_b.ndim - 1)
            parts_b.append(mx.pad(m.lora_b, [*before, (below, sum(widths) - below - width)]))
        below += width
    lengths = [m.lora_m if "lora_m" in m else mx.ones((w,)) for m, w in zip(maps, widths, strict=True)]
    if any("lora_m" in m for m in maps):
        fused.lora_m = mx.concatenate([length.astype(parts_a[0].dtype) for length in lengths])
    fused.lora_a, fused.lora_b = mx.concatenate(parts_a, axis=-1), mx.concatenate(parts_b, axis=-2)


def _join_norms(attention: nn.Module, projection: str, names: tuple[str, str], fused_name: str) -> None:
    """Replace the norms of queries and keys by one over all heads, if these come from one projection."""
    if projection not in attention or fused_name in attention:
        return
    heads = (attention.q_size // attention.head_dim, attention.kv_size // attention.head_dim)
    norms = [attention[name] for name in names]
    attention[fused_name] = HeadNorm([norm.weight for norm in norms], heads, norms[0].eps)
    for name in names:
        del attention[name]


def _move_shared(mlp: nn.Module) -> bool:
    """Put the shared experts, one MLP of n times an expert's width, behind the routed ones as n experts."""
    if "gate_up_proj" in mlp.experts:
        return False
    n = mlp.config.num_shared_experts
    names = ("gate_proj", "up_proj", "down_proj")
    pairs = [(mlp.experts[name], mlp.shared_experts[name]) for name in names]
    if any(_quantization(routed) != _quantization(shared) for routed, shared in pairs):
        return False
    if any(key in part for key in ("global_scale", "lora_a") for pair in pairs for part in pair):
        return False
    down = pairs[-1][0]
    if n > 1 and "scales" in down and mlp.config.moe_intermediate_size % down.group_size:
        return False
    for name, (routed, shared) in zip(names, pairs, strict=True):
        for key in ("weight", "scales", "biases"):
            if routed.get(key) is None:
                continue
            # an expert's width is the columns of down, the rows of gate and up
            if name == "down_proj":
                parts = shared[key].reshape(shared[key].shape[0], n, -1).swapaxes(0, 1)
            else:
                parts = shared[key].reshape(n, -1, shared[key].shape[-1])
            routed[key] = mx.concatenate([routed[key], parts])
            # one at a time, before gate and up are joined: a layer never holds two more copies of its experts
            mx.eval(routed[key])
    del mlp.shared_experts
    _add_router_rows(mlp, n)
    mlp.shared_in_experts = n
    mlp.experts.num_experts += n
    mlp.experts.number_rows(mlp.config.num_experts_per_tok + n)
    return True


def _add_router_rows(mlp: nn.Module, n: int) -> None:
    """Give the router a row of zeros for each shared expert, and it an infinite bias, so that it is always chosen."""
    gate = mlp.router.gate
    for key in ("weight", "scales", "biases"):
        if gate.get(key) is not None:
            gate[key] = mx.pad(gate[key], [(0, n), (0, 0)])
    if "lora_a" in gate:
        gate.lora_b = mx.pad(gate.lora_b, [(0, 0), (0, n)])
    if "lora_m" in gate:
        gate.lora_m = mx.pad(gate.lora_m, (0, n), constant_values=mx.array(1, gate.lora_m.dtype))
    mlp.expert_bias = mx.pad(mlp.expert_bias, (0, n), constant_values=mx.array(mx.inf, mlp.expert_bias.dtype))
