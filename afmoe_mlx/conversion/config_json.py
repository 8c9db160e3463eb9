"""The `config.json` of a converted model."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..models import ARCHITECTURES, ModelConfig

# Keys of the source's config that say nothing of what is written, or what others say better.
DROPPED = ("_name_or_path", "auto_map", "quantization", "quantization_config", "dtype", "torch_dtype", "full_attn_idxs")


def config_json(
    raw: Mapping[str, Any],
    config: ModelConfig,
    quantization: Mapping[str, Any] | None,
    dtype: str,
    *,
    for_hub: bool = False,
) -> dict[str, Any]:
    """The `config.json` to write: the source's, with every default written out and RoPE in both spellings.

    Other readers have other defaults, and mlx-lm knows only the older spelling. for_hub: as Transformers 5 writes it,
    with `architectures` and with `dtype` for `torch_dtype`.
    """
    written = {key: value for key, value in raw.items() if key not in DROPPED}
    own = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "rope"}
    written |= {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
    rope = _rope_json(config)
    theta = rope["rope_theta"]
    scaling = None if rope["rope_type"] == "default" else {k: v for k, v in rope.items() if k != "rope_theta"}
    written |= {"rope_parameters": rope, "rope_theta": theta, "rope_scaling": scaling}
    written["dtype" if for_hub else "torch_dtype"] = dtype
    if for_hub and not written.get("architectures"):
        written["architectures"] = [ARCHITECTURES[written["model_type"]][1].__name__]
    if quantization is not None:
        written |= {"quantization": dict(quantization), "quantization_config": dict(quantization)}
    return dict(sorted(written.items()))


def _rope_json(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    used = {
        "default": ("rope_theta",),
        "linear": ("rope_theta", "factor"),
        "llama3": (
            "rope_theta",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
        "yarn": (
            "rope_theta",
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    }[rope.rope_type]
    values = {key: getattr(rope, key) for key in used}
    return {"rope_type": rope.rope_type} | {key: value for key, value in values.items() if value is not None}
