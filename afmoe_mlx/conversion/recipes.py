"""The recipes that can be named: the built-in ones, and those of TOML files."""

import os
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from ..checkpoint.files import read_config_json
from ..checkpoint.foreign import translate
from ..checkpoint.hub import resolve_headers
from ..checkpoint.load import empty_model
from ..checkpoint.quantized import parameters
from ..errors import ConversionError
from ..models import read_config
from ..values import shown
from .recipe import Recipe, Rule, commonest, formats_in, takes_format, uniform
from .recipe_file import read_recipe_file

# (bits of routed experts, bits of all others). Nearly all weights are routed experts', of which a token takes a few; it
# takes all of the others: more bits for those cost little and gain much. mlx-lm's recipes of these names have more for
# values, the head and, experts' included, the down_proj of half of the layers: more bytes, and less for them.
MIXED = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
ROUTED_EXPERTS = ("*.experts.*", "*.switch_mlp.*")
UNIFORM: dict[str, dict[str, Any]] = {
    "4bit": {"bits": 4},
    "3bit": {"bits": 3},
    "6bit": {"bits": 6},
    "8bit": {"bits": 8},
    "mxfp4": {"mode": "mxfp4"},
    "nvfp4": {"mode": "nvfp4"},
}
BUILT_IN = (*UNIFORM, *MIXED)


def read_recipe(name_or_file: str) -> Recipe:
    """The built-in recipe of a name, or that of a TOML file; ConversionError for what is neither or makes no sense."""
    if name_or_file in UNIFORM:
        return uniform(name_or_file, UNIFORM[name_or_file])
    if name_or_file in MIXED:
        experts, others = (parameters({"bits": bits}) for bits in MIXED[name_or_file])
        return Recipe(name_or_file, others, (Rule(ROUTED_EXPERTS, experts),))
    path = os.path.expanduser(name_or_file)
    if not os.path.exists(path):
        known = ", ".join(BUILT_IN)
        raise ConversionError(f"recipe is {shown(name_or_file)}: expected one of {known}, or an existing TOML file")
    return read_recipe_file(Path(path))


def recipe_of_model(source: str | os.PathLike[str], *, revision: str | None = None) -> Recipe | None:
    """The recipe that a model's weights are quantized by, each as it is, from its headers alone; None for plain ones.

    Raises the errors of `resolve_headers`.
    """
    folder, stored = resolve_headers(source, revision=revision)
    raw, headers = translate(read_config_json(folder), stored)
    model, _ = empty_model(folder, raw, read_config(raw), headers)
    formats = formats_in(model)
    if not formats:
        return None
    default = commonest(formats.values())
    weights = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    paths = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    others = [path for path in paths if takes_format(path, weights[f"{path}.weight"]) and formats.get(path) != default]
    rules = tuple(Rule((path,), formats.get(path)) for path in others)
    return Recipe(f"of {os.path.basename(os.fspath(source).rstrip('/'))}", default, rules)
