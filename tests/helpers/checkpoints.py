"""Tiny checkpoints written on the fly, from a golden's config and tensor shapes, in every layout that is read."""

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parent / "goldens"
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Golden:
    """One configuration: `config.json` and tensor shapes as Transformers saved them, inputs, and its logits."""

    config: dict[str, Any]
    shapes: dict[str, list[int]]
    arrays: Mapping[str, np.ndarray]

    @property
    def tensors(self) -> Tensors:
        return {name: weight(name, shape) for name, shape in self.shapes.items()}


@cache
def golden(name: str) -> Golden:
    with np.load(GOLDENS / f"{name}.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    described = json.loads(arrays.pop("described").tobytes())
    return Golden(described["config"], described["shapes"], arrays)


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """The values of tensor `name`: a function of its name and shape, so that goldens need no weights stored."""
    return _weight(name, tuple(shape))


@lru_cache(maxsize=20_000)
def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    made = _drawn(name, shape)
    made.flags.writeable = False  # many tests share it
    return made


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.2 * values).astype(np.float32)
    if name.endswith("bias"):
        return (0.2 * values).astype(np.float32)
    if name.endswith("embed_tokens.weight"):
        return (0.15 * values).astype(np.float32)
    fan_in = shape[-1] if len(shape) == 2 else np.prod(shape[1:])
    return (values / np.sqrt(max(fan_in, 1))).astype(np.float32)


def write(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    layout: Callable[[Tensors], Tensors] | None = None,
    shards: int = 1,
) -> Path:
    """A checkpoint folder with these tensors, in another layout or in several files if asked."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = layout(tensors) if layout else tensors
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: names[i % shards] for i, name in enumerate(tensors)}
    for file in names:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_golden(folder: Path, name: str, **changes: Any) -> Path:
    """The checkpoint of a golden, with config keys changed if asked."""
    made = golden(name)
    return write(folder, made.config | changes, made.tensors)


def stacked(tensors: Tensors) -> Tensors:
    """mlx-lm's layout: one tensor a projection for all experts, its own names for LFM2-MoE."""
    experts: dict[str, dict[int, np.ndarray]] = {}
    result: Tensors = {}
    for name, tensor in tensors.items():
        if "feed_forward" in name:
            for letter, projection in {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.items():
                name = name.replace(f".{letter}.", f".{projection}.")
        if match := re.fullmatch(r"(.*)\.experts\.(\d+)\.(.*)", name):
            path = "switch_mlp" if "feed_forward" in name else "experts"
            experts.setdefault(f"{match[1]}.{path}.{match[3]}", {})[int(match[2])] = tensor
        else:
            result[name] = np.ascontiguousarray(tensor.swapaxes(1, 2)) if name.endswith("conv.conv.weight") else tensor
    return result | {name: np.stack([parts[i] for i in sorted(parts)]) for name, parts in experts.items()}


def packed(tensors: Tensors) -> Tensors:
    """Transformers' in-memory layout: gate and up of all experts in one tensor, down in another."""
    result = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    grouped = stacked({name: tensor for name, tensor in tensors.items() if ".experts." in name})
    for name, gate in grouped.items():
        path = name.removesuffix(".gate_proj.weight")
        if path == name:
            continue
        stored = path.replace("switch_mlp", "experts")
        result[f"{stored}.gate_up_proj"] = np.concatenate([gate, grouped[f"{path}.up_proj.weight"]], axis=1)
        result[f"{stored}.down_proj"] = grouped[f"{path}.down_proj.weight"]
    return result


def older_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as Transformers wrote it before version 5: `rope_theta` and `rope_scaling`, `torch_dtype`."""
    rope = dict(config["rope_parameters"])
    older = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    theta = rope.pop("rope_theta")
    scaling = None if rope["rope_type"] == "default" else rope
    return older | {"rope_theta": theta, "rope_scaling": scaling, "torch_dtype": config["dtype"]}


def recast(folder: Path, dtype: mx.Dtype, *, keep: str = "expert_bias") -> Path:
    """Store a written checkpoint's tensors as `dtype`, all but those whose name ends with `keep`."""
    for path in folder.glob("*.safetensors"):
        tensors = mx.load(str(path))
        cast = {name: a if name.endswith(keep) else a.astype(dtype) for name, a in tensors.items()}
        mx.eval(cast)
        mx.save_safetensors(str(path), cast)
    return folder
