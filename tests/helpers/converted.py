"""What the tests of conversions share: sources wide enough for every format, and what is in a folder."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx.models import CausalLM
from helpers.tiny import ARCHITECTURES, tiny_folder, tokens

# Widths that every mode and group size divides; one dense layer and one with experts. Embeddings are not scaled: in
# mxfp4 and its like they come out in bfloat16, where the product is rounded, and their plain weights' is not.
WIDE: dict[str, dict[str, Any]] = {
    "afmoe": {"head_dim": 32, "layer_types": ["sliding_attention", "full_attention"], "mup_enabled": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
}
for _changes in WIDE.values():
    _changes |= {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 2}
FORMATS: dict[str, dict[str, Any]] = {
    **{f"{bits} bits": {"bits": bits} for bits in (2, 3, 4, 5, 6, 8)},
    **{f"groups of {size}": {"bits": 4, "group_size": size} for size in (32, 128)},
    **{mode: {"mode": mode} for mode in ("mxfp4", "nvfp4", "mxfp8")},
}


@pytest.fixture(scope="module", params=ARCHITECTURES, name="source")
def source_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with tokenizer, wide enough for every format."""
    return tiny_folder(tmp_path_factory.mktemp("source") / "model", request.param, **WIDE[request.param])


def stored(folder: Path) -> dict[str, mx.array]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in mx.load(str(path)).items()}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits(model: CausalLM) -> np.ndarray:
    return np.array(model(tokens(1, 33)).astype(mx.float32))
