"""How a checkpoint's config says its weights are quantized, in mlx-lm's terms."""

from collections.abc import Collection, Mapping
from typing import Any

import mlx.nn as nn

from ..errors import ConfigError

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
    if mode not in MODES:
        raise ConfigError(f"config: {where}.mode is {mode!r}: expected one of {', '.join(MODES)}")
    given = (values.get("group_size"), values.get("bits"))
    chosen = [default if value is None else value for value, default in zip(given, MODES[mode], strict=True)]
    for name, value, accepted in zip(("group_size", "bits"), chosen, SIZES[mode], strict=True):
        if isinstance(value, bool) or value not in accepted:
            allowed = ", ".join(map(str, accepted))
            raise ConfigError(f"config: {where}.{name} is {value!r}: expected {allowed} with mode {mode}")
    return {"group_size": chosen[0], "bits": chosen[1], "mode": mode}


def read_quantization(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `quantization` of a parsed config, None where nothing is quantized; other makers' schemes are refused."""
    found = raw.get("quantization")
    if found is None:
        found = raw.get("quantization_config")
        if isinstance(found, Mapping) and "quant_method" in found:
            method = found["quant_method"]
            raise ConfigError(
                f"config: quantization_config.quant_method is {method!r}: expected weights quantized by MLX, or none;"
                " convert the unquantized model instead"
            )
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ConfigError(f"config: quantization is {found!r}: expected an object")
    return found


def quantize_modules(model: nn.Module, quantization: Mapping[str, Any], stored: Collection[str]) -> None:
    """Give the modules whose scales are stored their quantized form, with the config's parameters for each."""
    default = parameters(quantization)

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or f"{path}.scales" not in stored:
            return False
        override = quantization.get(path)
        if override is False:
            raise ConfigError(f"config: quantization has {path} as unquantized, yet its scales are stored")
        values = parameters(override, f"quantization.{path}") if isinstance(override, Mapping) else dict(default)
        if f"{path}.global_scale" in stored:
            values["global_scale"] = True
        return values

    nn.quantize(model, class_predicate=predicate)
