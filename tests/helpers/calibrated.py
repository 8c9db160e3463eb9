"""Sources and texts for conversions that are calibrated."""

from pathlib import Path
from typing import Any

from helpers.converted import WIDE
from helpers.grid import AFMOE_GRID, LFM2_GRID
from helpers.tiny import ARCHITECTURES, tiny_folder

CONFIGS = [("afmoe", name) for name in AFMOE_GRID] + [("lfm2_moe", name) for name in LFM2_GRID]

PROSE = "The wind fell before dawn, and hello, the world was still. Who heard it? Nobody did: 12 + 30 = 42.\n"


def source_folder(folder: Path, model_type: str, *, width: int = 32, **changes: Any) -> Path:
    """Narrower than conversions to every format need: groups of 32 are enough here, and one of them for most tests."""
    narrow = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), width)
    heads = {"head_dim": width // 4} if model_type == "afmoe" else {}
    return tiny_folder(folder / "source", model_type, **WIDE[model_type] | narrow | heads | changes)


VARIANTS = {
    "afmoe": [
        {},
        {"attention_bias": True, "num_shared_experts": 2, "tie_word_embeddings": True},
        {"num_shared_experts": 0, "mup_enabled": True, "num_dense_layers": 0, "hidden_act": "gelu"},
        {"score_func": "softmax", "num_dense_layers": 2},
    ],
    "lfm2_moe": [
        {},
        {"conv_bias": True, "tie_word_embeddings": False, "use_expert_bias": False, "num_dense_layers": 0},
    ],
}

CASES = [(model_type, changes) for model_type in ARCHITECTURES for changes in VARIANTS[model_type]]
