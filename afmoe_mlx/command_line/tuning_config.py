"""The YAML file of `lora --config`: options by their names, or as mlx_lm.lora's has them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ..errors import InputError
from ..values import listed, shown
from .parsing import NOT_HERE

# mlx-lm's `lora_parameters`, and what they are here.
PARAMETERS = {"rank": "rank", "scale": "scale", "dropout": "dropout", "keys": "target"}
NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


def read_tuning_config(path: str, context: typer.Context) -> dict[str, Any]:
    """The file's values by the names of the command's parameters; InputError for what no option takes."""
    values = _read(path)
    parameters = values.pop("lora_parameters", None) or {}
    if not isinstance(parameters, Mapping) or parameters.keys() - PARAMETERS.keys():
        raise InputError(f"{path}: lora_parameters: expected {', '.join(PARAMETERS)}, found {shown(parameters)}")
    values |= {PARAMETERS[key]: value for key, value in parameters.items()}
    configs = values.get("optimizer_config")
    if isinstance(configs, Mapping) and all(isinstance(value, Mapping | None) for value in configs.values()):
        values["optimizer_config"] = configs.get(values.get("optimizer", "adam")) or {}
    known = {param.name: param for param in context.command.params}
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if value is None or (value is False and key not in known):
            continue
        flag = f"--{key.replace('_', '-')}"
        if key not in known or key == "config":
            raise InputError(f"{path}: {listed([key])}: {NOT_HERE.get(flag, 'lora has no option of this name')}")
        try:
            known[key].type_cast_value(context, value)
        except typer.BadParameter as error:
            raise InputError(f"{path}: {key} is {shown(value)}: {error.message}") from None
        except (TypeError, AttributeError):  # of a list where a word is meant
            raise InputError(f"{path}: {key} is {shown(value)}: expected what {flag} takes") from None
        chosen[key] = value
    return chosen


def _read(path: str) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's numbers: 1e-5 is one, too."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789."))
    try:
        values = yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'no UTF-8'}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: expected options by their names, such as iters: 600")
    return values
