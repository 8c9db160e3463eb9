"""Who quantized a checkpoint, by its config alone.

So what is not read is refused before anything else is fetched or read, with what to take instead.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from ..errors import ConfigError
from ..values import shown
from .names import instead

# `quant_method` of what is read; `foreign.translate` goes by the tensors that are there.
READ = {"compressed-tensors": "compressed-tensors", "modelopt": "ModelOpt"}


def is_foreign(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json says that another quantizer than MLX wrote the weights."""
    found = raw.get("quantization_config")
    return raw.get("quantization") is None and isinstance(found, Mapping) and "quant_method" in found


def check_method(raw: Mapping[str, Any], name: "str | PathLike[str]") -> None:
    """ConfigError if a parsed config.json is of a quantizer whose files are not read.

    name: of the model, a folder or a repository, for what to take instead.
    """
    found = raw.get("quantization_config")
    if raw.get("quantization") is not None or not isinstance(found, Mapping):
        return
    method = found.get("quant_method")
    if method is None and any(key.startswith("load_in_") for key in found):
        method = "bitsandbytes"  # as it wrote itself once
    if method is not None and not (isinstance(method, str) and method in READ):
        what = f"config: quantization_config.quant_method is {shown(method)}"
        raise ConfigError(f"{what}: expected MLX, {' or '.join(READ.values())}, or none: {instead(name)}")
    if found.get("transform_config"):
        what = "config: quantization_config.transform_config asks for transformed activations"
        raise ConfigError(f"{what}: expected weights that stand for themselves: {instead(name)}")
