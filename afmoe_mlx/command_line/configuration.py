"""The user's own defaults: `config.toml`, with a model and presets, each a table of options by their names."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ..errors import InputError, OptionError
from ..values import listed, shown
from .logit_bias import parse_logit_bias

# What TOML has for each type of option, and what that is called in a message.
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "boolean": ((bool,), "true or false"),
    "int": ((int,), "an integer"),
    "int range": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "float range": ((int, float), "a number"),
    "str": ((str,), "text"),
    "guesses": ((int, bool), "a number of tokens, or true"),
    "byte_size": ((int, str), 'bytes, or such as "32MB"'),
    "duration": ((int, float, str), 'seconds, or such as "10m"'),
    "experts_in_memory": ((int, str), 'a size such as "6GB", or "auto"'),
}
# What `stream_generate` calls an option that is short here.
SPELLED_OUT = {"temp": "temperature"}


def configuration_file() -> Path:
    """Where it is for this user, by the habits of the system; it need not be there."""
    base = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not base.is_absolute():
        base = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".config")
    return base / "afmoe-mlx" / "config.toml"


def default_model() -> str | None:
    """The model of the user's choice, None without one; InputError for a file that makes no sense."""
    model = _read().get("model")
    if not isinstance(model, str | None):
        raise InputError(f"{configuration_file()}: model is {shown(model)}: expected text")
    return model


def preset(name: str, context: typer.Context) -> dict[str, Any]:
    """The values that a preset has for the options of the command being read, by its parameters' names.

    Raises InputError, naming the file and the key, for a preset that is not there and for what no option takes.
    """
    from ..generation import check_options

    presets = _read().get("presets", {})
    path = configuration_file()
    if not isinstance(presets, Mapping) or not isinstance(presets.get(name), Mapping):
        has = f"those there are: {listed(presets)}" if isinstance(presets, Mapping) and presets else "it has none"
        raise InputError(f"{path}: no table [presets.{name}], {has}")
    params = context.command.params
    options: dict[str, Any] = {_key(flag): param for param in params for flag in param.opts if flag.startswith("--")}
    chosen: dict[str, Any] = {}
    for key, value in presets[name].items():
        place, param = f"{path}: presets.{name}.{listed([key])}", options.get(_key(key))
        if param is None or param.name == "preset":
            raise InputError(f"{place}: {context.command.name} has no option of this name")
        _check_type(place, value, param)
        try:
            param.type_cast_value(context, value)
            meant: Any = parse_logit_bias(value) if param.name == "logit_bias" else value
            check_options(**{SPELLED_OUT.get(_key(key), _key(key)): meant})
        except OptionError:
            pass  # of another meaning than the answer's
        except (InputError, typer.BadParameter) as error:
            raise InputError(f"{place}: {getattr(error, 'message', error)}") from None
        chosen[param.name] = value
    return chosen


def _read() -> dict[str, Any]:
    path = configuration_file()
    if not path.is_file():
        return {}
    import tomllib

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    if unknown := found.keys() - {"model", "presets"}:
        raise InputError(f"{path}: {listed(unknown)}: expected model, and tables [presets.NAME]")
    return found


def _key(option: str) -> str:
    """max_tokens, of --max-tokens and of what a preset may call it."""
    return option.removeprefix("--").replace("-", "_")


def _check_type(place: str, value: Any, param: Any) -> None:
    types, expected = KINDS[param.type.name]
    if param.multiple and not isinstance(value, list):
        raise InputError(f"{place} is {shown(value)}: expected a list")
    for one in value if param.multiple else [value]:
        if not isinstance(one, types) or (isinstance(one, bool) and bool not in types):
            raise InputError(f"{place} is {shown(one)}: expected {expected}")
