"""Recipes: how many bits each module's weights get.

A recipe has a default and rules of patterns; of the rules that match a module's path, the last decides. Routers,
`expert_bias`, norms and convolutions stay as they are, and so does what a format's groups do not divide.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..checkpoint.quantized import parameters
from ..models import CausalLM
from ..values import listed, shown

# group_size, bits and mode, as `checkpoint.quantized.parameters` returns them.
Format = dict[str, Any]

ROUTERS = ("router.gate", "feed_forward.gate")
CONVOLUTION = "conv.conv"


@dataclass(frozen=True)
class Rule:
    """Patterns of module paths, in which `*` stands for any text, and what the weights they match become."""

    patterns: tuple[str, ...]
    format: Format | None
    """None: as stored."""
    where: str = ""
    """The file it was read from and its place there, for warnings; built-in rules need none."""

    def matches(self, path: str) -> bool:
        """Whether the rule is for a module; for a router only if a pattern names it, and not by a mere `*`."""
        named = [pattern for pattern in self.patterns if not is_router(path) or names_router(pattern)]
        return any(fnmatchcase(path, pattern) for pattern in named)


@dataclass(frozen=True)
class Recipe:
    """A name, the format of most weights (None: as stored) and rules for some, the last that matches winning."""

    name: str
    default: Format | None
    rules: tuple[Rule, ...] = ()

    def format_of(self, path: str, shape: tuple[int, ...]) -> Format | None:
        """The format of a module's weight, None for as it is stored.

        path: "model.layers.3.mlp.experts.gate_proj", say. shape: of its weight, unquantized, in our layout.
        """
        if not takes_format(path, shape):
            return None
        rule = next((rule for rule in reversed(self.rules) if rule.matches(path)), None)
        chosen = rule.format if rule else None if is_router(path) else self.default
        return dict(chosen) if chosen is not None and shape[-1] % chosen["group_size"] == 0 else None

    def formats(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Format | None]:
        """The format of every module, by path, with a warning for each rule that does not do what it says.

        shapes: of the modules' weights, unquantized, by path; other parameters may be among them by their names.
        """
        for rule in self.rules:
            if rule.where and (problem := _problem(rule, shapes)):
                warnings.warn(f"{rule.where}: {problem}", stacklevel=2)
        return {path: self.format_of(path, shape) for path, shape in shapes.items()}


def is_router(path: str) -> bool:
    """Whether a module chooses experts."""
    return path.endswith(ROUTERS)


def names_router(pattern: str) -> bool:
    """Whether a pattern means routers, as `*.router.gate` does, and does not merely reach them, as `*` does."""
    return "router" in pattern or pattern.rpartition(".")[2] == "gate"


def takes_format(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight can be quantized at all: those of linear maps, experts and embeddings can."""
    return len(shape) >= 2 and not path.endswith(CONVOLUTION)


def _problem(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a user should know of a rule, if anything."""
    for pattern in rule.patterns:
        if not any(fnmatchcase(path, pattern) for path in shapes):
            return f"{shown(pattern)} matches no module: see --dry-run for their names"
    if rule.format is None:
        return None
    matched = [path for path in shapes if any(fnmatchcase(path, pattern) for pattern in rule.patterns)]
    routers = [path for path in matched if is_router(path)]
    obeyed = [path for path in routers if rule.matches(path)]
    if obeyed:
        return f"quantizes routers ({listed(obeyed)}): they decide which experts answer, keep = true is better"
    if routers and len(routers) == len(matched):
        return f"{listed(rule.patterns)} matches routers alone: they stay as they are"
    if not any(takes_format(path, shapes[path]) for path in matched):
        return f"{listed(matched)} cannot be quantized: norms, biases and convolutions stay as they are"
    return None


def formats_in(model: CausalLM) -> dict[str, Format]:
    """The formats of a model's quantized modules, by path."""
    return {
        path: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        for path, module in model.named_modules()
        if "scales" in module
    }


def uniform(name: str, values: Mapping[str, Any]) -> Recipe:
    """One format for everything; ConfigError for bits, a group size or a mode that there is not."""
    return Recipe(name, parameters(values))


def quantization_of(formats: Mapping[str, Format | None]) -> dict[str, Any] | None:
    """`quantization` of config.json, in mlx-lm's terms: the commonest format, and each module's that has another.

    None where nothing is quantized. Modules that are kept have no entry: they have no scales.
    """
    used = {path: chosen for path, chosen in formats.items() if chosen is not None}
    if not used:
        return None
    default = commonest(used.values())
    return default | {path: dict(chosen) for path, chosen in sorted(used.items()) if chosen != default}


def commonest(formats: Iterable[Format]) -> Format:
    """The format that most have."""
    counts = Counter(tuple(sorted(chosen.items())) for chosen in formats)
    most = max(counts.values())
    return dict(min(chosen for chosen, count in counts.items() if count == most))
