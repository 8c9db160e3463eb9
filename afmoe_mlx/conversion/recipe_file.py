"""A recipe in a TOML file.

    [default]                                # of everything that no rule matches
    bits = 3
    group_size = 64

    [[rules]]                                # in order: the last that matches a module decides
    modules = ["*.down_proj", "lm_head"]     # `*` stands for any text, dots included
    bits = 6                                 # group_size as in [default]

    [[rules]]
    modules = "model.layers.0.*"
    keep = true                              # as stored

A rule in the default's mode has what it leaves out from there; in another mode, that mode's own defaults.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.quantized import parameters
from ..errors import ConfigError, ConversionError
from ..values import listed, shown
from .recipe import Format, Recipe, Rule

FORMAT_KEYS = ("bits", "group_size", "mode", "keep")


def read_recipe_file(path: Path) -> Recipe:
    """The recipe of a TOML file, named after it; ConversionError names the file, the key and what was expected."""
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not valid TOML: {error}") from None
    try:
        return _recipe(path.stem, values, str(path))
    except ConfigError as error:
        raise ConversionError(f"{path}: {str(error).removeprefix('config: ')}") from None


def _recipe(name: str, values: Mapping[str, Any], file: str) -> Recipe:
    _check_keys("the file", values, ("default", "rules"))
    if "default" not in values:
        raise ConfigError("default is missing: expected a table with bits, or with keep = true")
    default = _format("default", values["default"], None, FORMAT_KEYS)
    rules = values.get("rules", [])
    if not isinstance(rules, list):
        raise ConfigError(f"rules is {shown(rules)}: expected a list of tables, each under [[rules]]")
    return Recipe(name, default, tuple(_rule(i, rule, default, file) for i, rule in enumerate(rules, 1)))


def _rule(number: int, values: Any, default: Format | None, file: str) -> Rule:
    where = f"rule {number}"
    chosen = _format(where, values, default, ("modules", *FORMAT_KEYS))
    found = values.get("modules")
    patterns = [found] if isinstance(found, str) else found
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise ConfigError(f"{where}.modules is {shown(found)}: expected a pattern such as '*.down_proj', or a list")
    return Rule(tuple(patterns), chosen, f"{file}: {where}")


def _format(where: str, values: Any, default: Format | None, keys: tuple[str, ...]) -> Format | None:
    """The format that a table gives, None for keep; ConfigError for anything else."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {shown(values)}: expected a table with bits, or with keep = true")
    _check_keys(where, values, keys)
    keep = values.get("keep", False)
    if not isinstance(keep, bool):
        raise ConfigError(f"{where}.keep is {shown(keep)}: expected true or false")
    given = {key: values[key] for key in ("bits", "group_size", "mode") if key in values}
    if keep and given:
        raise ConfigError(f"{where} has keep = true and {listed(given)} too: expected one or the other")
    if keep:
        return None
    if not given:
        raise ConfigError(f"{where} gives no format: expected bits, group_size or mode, or keep = true")
    if default is not None and given.get("mode", default["mode"]) == default["mode"]:
        given = default | given
    return parameters(given, where)


def _check_keys(where: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := values.keys() - {*known}:
        raise ConfigError(f"{where} has {listed(unknown)}: expected {', '.join(known)}")
