"""`Adapter`: low-rank changes of a model's linear maps, as mlx-lm and PEFT save them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.files import ADAPTER, read_headers, read_json, require_dtypes
from ..checkpoint.layouts import pieces_of
from ..errors import AdapterError
from ..values import listed, shown

MLX_LM, PEFT = "adapters.safetensors", "adapter_model.safetensors"

# What PEFT may say of an adapter that changes what it computes, and is not done here.
NOT_DONE = (
    "alpha_pattern",
    "rank_pattern",
    "modules_to_save",
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
)
PEFT_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<path>.*)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)


@dataclass(frozen=True)
class LowRank:
    """What is added to a linear map: x -> (x a) b; a (…, in, r), b (…, r, out), one each for an expert's map.

    magnitude: (out,), DoRA's: the lengths that the rows of the changed weight are given.
    """

    a: mx.array
    b: mx.array
    magnitude: mx.array | None = None


@dataclass(frozen=True)
class Adapter:
    """Changes by the names that the model's modules have before it is fused; weights: those that are replaced whole."""

    folder: Path
    changes: Mapping[str, LowRank]
    weights: Mapping[str, mx.array] = field(default_factory=dict)


def read_adapter(folder: str | Path, model_type: str) -> Adapter:
    """The adapter of a folder, of mlx-lm (LoRA, DoRA, full) or PEFT (LoRA, DoRA), its arrays not yet read.

    Raises AdapterError, and CheckpointError for files that are damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / ADAPTER).is_file():
        raise AdapterError(f"{folder}: no {ADAPTER}: expected a folder with an adapter, of mlx-lm or PEFT")
    raw = read_json(folder / ADAPTER)
    if (folder / MLX_LM).is_file():
        return _of_mlx_lm(folder, raw)
    if (folder / PEFT).is_file():
        return _of_peft(folder, raw, model_type)
    raise AdapterError(f"{folder}: no {MLX_LM} or {PEFT}: expected the adapter's weights")


def _read(path: Path) -> dict[str, mx.array]:
    require_dtypes(read_headers([path]))
    return dict(mx.load(str(path)))  # type: ignore[arg-type]


def _of_mlx_lm(folder: Path, raw: Mapping[str, Any]) -> Adapter:
    arrays, kind = _read(folder / MLX_LM), raw.get("fine_tune_type", "lora")
    if kind == "full":
        return Adapter(folder, {}, arrays)
    if kind not in ("lora", "dora"):
        raise AdapterError(f"{folder}: fine_tune_type is {shown(kind)}: expected lora, dora or full")
    parameters = raw.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    if not isinstance(scale, int | float):
        raise AdapterError(f"{folder}: {ADAPTER} has no lora_parameters.scale: expected mlx-lm's")
    parts = _grouped(folder, {name: name.rpartition(".")[::2] for name in arrays}, {"lora_a", "lora_b"}, {"m"})
    changes = {}
    for path, names in parts.items():
        a, b = (arrays[names[key]].astype(mx.float32) for key in ("lora_a", "lora_b"))
        if a.ndim == b.ndim == 3:  # of experts: (E, r, in) and (E, out, r)
            a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
        m = arrays[names["m"]].astype(mx.float32) if "m" in names else None
        changes[path] = LowRank(a, scale * b, m)
    return Adapter(folder, changes)


def _of_peft(folder: Path, raw: Mapping[str, Any], model_type: str) -> Adapter:
    if raw.get("peft_type", "LORA") != "LORA":
        raise AdapterError(f"{folder}: peft_type is {shown(raw['peft_type'])}: expected LORA")
    if strange := [name for name in NOT_DONE if raw.get(name)]:
        raise AdapterError(f"{folder}: {ADAPTER} has {listed(strange)}: not read; expected plain LoRA or DoRA")
    if raw.get("bias", "none") != "none":
        raise AdapterError(f"{folder}: bias is {shown(raw['bias'])}: expected none")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise AdapterError(f"{folder}: r is {shown(rank)}, lora_alpha {shown(alpha)}: expected two numbers")
    scale = alpha / (rank**0.5 if raw.get("use_rslora") else rank)
    arrays = _read(folder / PEFT)
    named = {}
    for name in arrays:
        match = PEFT_NAME.fullmatch(name)
        if match is None:
            raise AdapterError(f"{folder}: {listed([name])}: expected lora_A, lora_B or lora_magnitude_vector")
        ((ours, _),) = pieces_of(f"{match['path']}.weight", model_type)[:1]
        named[name] = ours.removesuffix(".weight"), match["kind"]
    parts = _grouped(folder, named, {"lora_A", "lora_B"}, {"lora_magnitude_vector"})
    changes = {}
    for path, names in parts.items():
        a, b = (arrays[names[key]].astype(mx.float32).T for key in ("lora_A", "lora_B"))
        length = names.get("lora_magnitude_vector")
        changes[path] = LowRank(a, scale * b, None if length is None else arrays[length].astype(mx.float32))
    return Adapter(folder, changes)


def _grouped(
    folder: Path, named: Mapping[str, tuple[str, str]], needed: set[str], optional: set[str]
) -> dict[str, dict[str, str]]:
    """Tensors by the module they belong to and what they are there; each has all that is needed, and nothing else."""
    parts: dict[str, dict[str, str]] = {}
    for name, (path, kind) in named.items():
        if kind not in needed | optional:
            raise AdapterError(f"{folder}: {listed([name])} is no part of an adapter that is read")
        parts.setdefault(path, {})[kind] = name
    for path, found in parts.items():
        if missing := needed - found.keys():
            raise AdapterError(f"{folder}: {path} has {listed(found.values())} and no {listed(missing)}")
    if not parts:
        raise AdapterError(f"{folder}: the adapter has no tensors")
    return parts
