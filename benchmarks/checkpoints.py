"""Checkpoints of random weights that both this package and mlx-lm read."""

import shutil
from pathlib import Path

import mlx.core as mx
from narrow import narrow_config

from afmoe_mlx.api import DEMO
from afmoe_mlx.checkpoint.random import save_random
from afmoe_mlx.models.shapes import shape

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
DEMO_VOCABULARY = 2048


def tiny_checkpoint(folder: Path) -> Path:
    """Eight narrow layers in float32, which both compute in as it is, with the demo's tokenizer: about 2 MB."""
    raw = narrow_config(vocab_size=DEMO_VOCABULARY, num_hidden_layers=8, num_experts=16)
    save_random(folder, raw | {"layer_types": raw["layer_types"][:8]}, dtype=mx.float32)
    for name in TOKENIZER:
        shutil.copyfile(DEMO / name, folder / name)
    return folder


def gigabyte_checkpoint(folder: Path) -> Path:
    """The first 15 layers of Trinity Nano in 4 bits and bfloat16: about 1 GB."""
    return save_random(folder, shape("trinity-nano", layers=15), bits=4)
