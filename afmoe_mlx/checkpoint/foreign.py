"""A checkpoint of another quantizer, compressed-tensors or ModelOpt, as one of MLX: the only place that knows both.

Formats that MLX has too keep their codes; others become plain weights. What is there is told by the tensors, since
configs name modules in many ways. Scales of activations, and of keys and values, are not applied: they are for kernels
that round those.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.nn as nn

from ..errors import CheckpointError
from ..models import make_model, read_config
from ..models.linear import Embedding, Linear
from ..models.moe import ExpertLinear
from ..values import listed
from .files import StoredTensor, require_dtypes
from .foreign_weights import Float8Weight, ForeignWeight, NVFP4Weight, PackedIntegers, PlainWeight
from .layouts import pieces_of
from .verify import Headers, check_layers

# Last parts of the names of a weight's tensors, beside `weight` itself.
KINDS = {"weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale", "weight_scale_2", "weight_shape"}
ACTIVATIONS = {"input_scale", "input_global_scale", "input_zero_point", "output_scale", "q_scale", "k_scale", "v_scale"}
ORDER = "weight_g_idx"

# Of float8, where the config does not say.
BLOCK = (128, 128)

Parts = dict[str, StoredTensor]


def translate(raw: dict[str, Any], headers: Headers, *, keep: bool = True) -> tuple[dict[str, Any], Headers]:
    """A checkpoint's parsed config.json and headers as MLX's, if another quantizer wrote it; else as they are.

    Tensors that are stored in another way are `DerivedTensor`s in the headers. keep: take the codes of formats that MLX
    has too, with their `quantization` in the config; else all weights are plain, in float32. Raises CheckpointError for
    tensors that do not belong together or are in a number format that is not read, and ConfigError.
    """
    modules = _quantized_modules(headers)
    if not modules:
        return raw, require_dtypes(headers)
    translated = {name: stored for name, stored in headers.items() if not _is_foreign(name, modules)}
    formats: dict[str, dict[str, Any]] = {}
    for path, (module, weights) in _weights(raw, headers, modules).items():
        is_kept = keep and _can_keep(module, weights)
        if is_kept:
            formats[path] = dict(weights[0].format or {})
        for weight in weights:
            tensors = weight.kept(is_expert=isinstance(module, ExpertLinear)) if is_kept else {"weight": weight.plain()}
            translated |= {f"{weight.path}.{kind}": tensor for kind, tensor in tensors.items()}
    rest = {key: value for key, value in raw.items() if key != "quantization_config"}
    return rest | ({"quantization": _quantization(formats)} if formats else {}), require_dtypes(translated)


def _quantized_modules(headers: Headers) -> dict[str, Parts]:
    """The tensors of every quantized weight, by the path that its module is stored under and by kind."""
    modules: dict[str, Parts] = {}
    for name, stored in headers.items():
        path, _, kind = name.rpartition(".")
        if kind == ORDER:
            raise CheckpointError(
                f"{stored.file}: {listed([name])} puts columns in another order: expected a model without actorder"
            )
        if kind in KINDS:
            modules.setdefault(path, {})[kind] = stored
    for path, parts in modules.items():
        if (weight := headers.get(f"{path}.weight")) is not None:
            parts["weight"] = weight
    return modules


def _is_foreign(name: str, modules: Mapping[str, Parts]) -> bool:
    """Whether a stored tensor is none of MLX's."""
    path, _, kind = name.rpartition(".")
    return kind in ACTIVATIONS or kind in modules.get(path, ())


def _weights(
    raw: Mapping[str, Any], headers: Headers, modules: Mapping[str, Parts]
) -> dict[str, tuple[nn.Module, list[ForeignWeight]]]:
    """The module of the model that each quantized weight is for, by path, with all the stored weights it is made of."""
    config = read_config(raw)
    check_layers(next(iter(headers.values())).file.parent, config, len(headers))
    ours = dict(make_model(config).named_modules())
    block = _block(raw)
    found: dict[str, tuple[nn.Module, list[ForeignWeight]]] = {}
    for path, parts in modules.items():
        name = _module_of(path, raw["model_type"])
        module = ours.get(name)
        if module is None or "weight" not in module or module.weight.ndim < 2:
            what = f"{_file(parts)}: unexpected {listed(f'{path}.{kind}' for kind in parts)}"
            raise CheckpointError(f"{what}: not parameters of this config's model")
        found.setdefault(name, (module, []))[1].append(_weight(path, parts, module.weight.shape[-1], block))
    for stored, tensor in headers.items():  # experts that were left out
        path, _, kind = stored.rpartition(".")
        if kind == "weight" and path not in modules and (name := _module_of(path, raw["model_type"])) in found:
            module, weights = found[name]
            weights.append(PlainWeight(path, {kind: tensor}, module.weight.shape[-1]))
    return found


def _module_of(path: str, model_type: str) -> str:
    [(name, _)] = pieces_of(f"{path}.weight", model_type)[:1]
    return name.removesuffix(".weight")


def _weight(path: str, parts: Parts, width: int, block: tuple[int, int]) -> ForeignWeight:
    """A weight by the tensors that are there; width: of its rows by the config."""
    weight = parts.get("weight_packed") or parts.get("weight")
    kinds = parts.keys() - {"weight_shape"}
    match weight and weight.dtype:
        case "F8_E4M3" if kinds == {"weight", "weight_scale"}:
            return Float8Weight(path, parts, width, block)
        case "I32" if kinds - {"weight_zero_point"} == {"weight_packed", "weight_scale"}:
            return PackedIntegers(path, parts, width)
        case "U8" if kinds == {"weight_packed", "weight_scale", "weight_global_scale"}:
            return NVFP4Weight(path, parts, width)
        case "U8" if kinds == {"weight", "weight_scale", "weight_scale_2"}:
            return NVFP4Weight(path, parts, width)
    found = ", ".join(f"{kind} {parts[kind].dtype}" for kind in sorted(kinds))
    expected = "float8 with scales, packed integers or NVFP4, whole, as compressed-tensors or ModelOpt write them"
    raise CheckpointError(f"{_file(parts)}: {listed([path])} has {found}: expected {expected}")


def _file(parts: Parts) -> Any:
    return next(iter(parts.values())).file


def _can_keep(module: nn.Module, weights: Sequence[ForeignWeight]) -> bool:
    """Whether a module of MLX can hold all the weights' codes: of one format, stored in one way."""
    first = weights[0]
    alike = all(w.format == first.format and w.dtypes == first.dtypes for w in weights)
    if first.format is None or not alike:
        return False
    holders = (Linear, ExpertLinear) if first.format["mode"] == "nvfp4" else (Linear, ExpertLinear, Embedding)
    return isinstance(module, holders)


def _quantization(formats: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """`quantization` of an MLX config: the commonest format, and by their paths the modules that have another."""
    counts = Counter(tuple(chosen.items()) for chosen in formats.values())
    default = dict(counts.most_common(1)[0][0])
    return default | {path: chosen for path, chosen in formats.items() if chosen != default}


def _block(raw: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of float8's blocks by the config."""
    found = raw.get("quantization_config")
    groups = found.get("config_groups") if isinstance(found, Mapping) else None
    for group in groups.values() if isinstance(groups, Mapping) else ():
        match group:
            case {"weights": {"block_structure": [int(rows), int(columns)]}} if rows > 0 and columns > 0:
                return rows, columns
    return BLOCK
