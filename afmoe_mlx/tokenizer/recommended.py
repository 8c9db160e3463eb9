"""The sampling that published models' cards recommend, for those whose generation_config.json says nothing of it."""

from collections.abc import Mapping
from typing import Any

# Keys of generation_config.json that say how to sample.
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")

# What tells the models apart, in their config.json. A quantized copy has the same.
SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "num_experts", "vocab_size")
RECOMMENDED: dict[tuple[Any, ...], dict[str, float]] = {
    # Trinity Mini
    ("afmoe", 32, 2048, 128, 200192): {"temperature": 0.15, "top_p": 0.75, "top_k": 50, "min_p": 0.06},
    # LFM2-8B-A1B
    ("lfm2_moe", 24, 2048, 32, 65536): {"temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05},
    # LFM2-24B-A2B
    ("lfm2_moe", 40, 2048, 64, 65536): {"temperature": 0.1, "top_k": 50, "repetition_penalty": 1.05},
    # LFM2.5-8B-A1B
    ("lfm2_moe", 24, 2048, 32, 128000): {"temperature": 0.2, "top_k": 80, "repetition_penalty": 1.05},
}


def with_recommended(generation_config: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed generation_config.json, with the sampling recommended for its model if it says nothing of sampling.

    config: the model's parsed config.json.
    """
    if any(generation_config.get(key) is not None for key in SAMPLING):
        return dict(generation_config)
    shape = tuple(value if isinstance(value := config.get(key), str | int) else None for key in SHAPE)
    return dict(generation_config) | RECOMMENDED.get(shape, {})
