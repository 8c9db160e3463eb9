"""The architectures: one file each, over shared blocks. A config's `model_type` chooses."""

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError
from ..values import shown
from .afmoe import AfmoeConfig, AfmoeForCausalLM
from .causal_lm import CausalLM
from .config import ModelConfig
from .decode import LONGEST_STEP
from .fuse import fuse, fuse_layer, joined_with
from .lfm2_moe import Lfm2MoeConfig, Lfm2MoeForCausalLM
from .pool import ExpertReads
from .streamed import ExpertPlacement, leave_room, stream_layer
from .sweep import sweep, sweep_layers, sweep_length, sweeps
from .trace import Trace

ARCHITECTURES: dict[str, tuple[type[ModelConfig], Callable[..., CausalLM]]] = {
    "afmoe": (AfmoeConfig, AfmoeForCausalLM),
    "lfm2_moe": (Lfm2MoeConfig, Lfm2MoeForCausalLM),
}

__all__ = [
    "ARCHITECTURES",
    "LONGEST_STEP",
    "AfmoeConfig",
    "AfmoeForCausalLM",
    "CausalLM",
    "ExpertPlacement",
    "ExpertReads",
    "Lfm2MoeConfig",
    "Lfm2MoeForCausalLM",
    "ModelConfig",
    "Trace",
    "fuse",
    "fuse_layer",
    "joined_with",
    "leave_room",
    "make_model",
    "read_config",
    "stream_layer",
    "sweep",
    "sweep_layers",
    "sweep_length",
    "sweeps",
]


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """A parsed `config.json` as the config of its architecture; ConfigError names what is wrong with it."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        found = "no model_type" if model_type is None else f"model_type is {shown(model_type)}"
        raise ConfigError(f"config: {found}: expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model_type][0].from_dict(raw)


def make_model(config: ModelConfig) -> CausalLM:
    """A model with random weights, unfused."""
    return next(model for kind, model in ARCHITECTURES.values() if isinstance(config, kind))(config)
