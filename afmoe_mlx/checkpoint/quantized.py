"""`quantization` of a checkpoint's config.json, in mlx-lm's terms."""

import warnings
from collections.abc import Mapping
from typing import Any

import mlx.nn as nn

from ..errors import ConfigError
from ..models.linear import Linear
from ..models.moe import ExpertLinear
from ..values import listed, shown

# (default group size, default bits) of each mode of mx.quantize
MODES = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
SIZES = {
    "affine": ((32, 64, 128), (2, 3, 4, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}


def parameters(values: Mapping[str, Any], where: str = "quantization") -> dict[str, Any]:
    """group_size, bits and mode of `values`, checked, with the mode's defaults where absent."""
    mode = values.get("mode") or "affine"
    if not isinstance(mode, str) or mode not in MODES:
        raise ConfigError(f"config: {where}.mode is {shown(mode)}: expected one of {', '.join(MODES)}")
    given = (values.get("group_size"), values.get("bits"))
    chosen = [default if value is None else value for value, default in zip(given, MODES[mode], strict=True)]
    for name, value, accepted in zip(("group_size", "bits"), chosen, SIZES[mode], strict=True):
        if value not in accepted:
            allowed = ", ".join(map(str, accepted))
            raise ConfigError(f"config: {where}.{name} is {shown(value)}: expected {allowed} with mode {mode}")
    return {"group_size": int(chosen[0]), "bits": int(chosen[1]), "mode": mode}


def read_quantization(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `quantization` of a parsed config in MLX's terms, None where nothing is quantized.

    That of another quantizer is none: see `foreign.translate`.
    """
    found = raw.get("quantization")
    if found is None:
        found = raw.get("quantization_config")
        if isinstance(found, Mapping) and "quant_method" in found:
            return None
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ConfigError(f"config: quantization is {shown(found)}: expected an object")
    return found


def is_quantizable(path: str, module: nn.Module, group_size: int) -> bool:
    """Whether our converter quantizes a module: maps and embeddings with whole groups, but never a router."""
    is_router = path.endswith(("router.gate", "feed_forward.gate"))
    return hasattr(module, "to_quantized") and not is_router and module.weight.shape[-1] % group_size == 0


def quantize_all(model: nn.Module, parameters: Mapping[str, Any]) -> None:
    """Quantize a model in place as our converter does, all but its routers."""
    nn.quantize(
        model,
        **parameters,
        class_predicate=lambda path, module: is_quantizable(path, module, parameters["group_size"]),
    )


def quantize_modules(model: nn.Module, quantization: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the modules whose scales are stored their quantized form, with the config's parameters for each.

    shapes: of our parameters as stored, by name.
    """
    default = parameters(quantization)
    used = {"group_size", "bits", "mode"}

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or f"{path}.scales" not in shapes:
            if quantization.get(path) is False:  # as is said here
                used.add(path)
            return False
        used.add(path)
        values = _override(path, quantization) or dict(default)
        width = module.weight.shape[-1]
        if width % values["group_size"]:
            found = f"quantization of {path} has group_size {values['group_size']}"
            raise ConfigError(f"config: {found}: expected a divisor of its width {width}")
        # one more scale for each expert or row; nothing is made for experts that are not there
        if isinstance(module, ExpertLinear | Linear) and shapes.get(f"{path}.global_scale") == module.weight.shape[:1]:
            values["global_scale"] = values["mode"] == "nvfp4"
        return values

    nn.quantize(model, class_predicate=predicate)
    if unused := quantization.keys() - used:
        warnings.warn(f"config: unused keys of quantization ignored: {listed(unused)}", stacklevel=4)


def _override(path: str, quantization: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the config says of one module alone, if it does."""
    found = quantization.get(path, True)
    if found is True:
        return None
    if found is False:
        raise ConfigError(f"config: quantization has {path} as unquantized, yet its scales are stored")
    if not isinstance(found, Mapping):
        raise ConfigError(f"config: quantization.{path} is {shown(found)}: expected an object, true or false")
    return parameters(found, f"quantization.{path}")
