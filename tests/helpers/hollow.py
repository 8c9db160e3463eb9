"""Checkpoints of any size that take no room: real headers over a file of holes."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint.quantized import quantize_all
from afmoe_mlx.models import make_model, read_config

DTYPES = {mx.bfloat16: "BF16", mx.float32: "F32", mx.uint32: "U32"}


def header(raw: Mapping[str, Any], bits: int | None = None) -> tuple[dict[str, Any], bytes, int]:
    """A published config as our converter would write it, the head of its one safetensors file, and the bytes after."""
    model = make_model(read_config(raw))
    nn.Module.set_dtype(model, mx.bfloat16)  # all of it, as published
    config = dict(raw)
    if bits is not None:
        config["quantization"] = {"bits": bits, "group_size": 64, "mode": "affine"}
        quantize_all(model, config["quantization"])
    tensors, end = {}, 0
    for name, array in tree_flatten(model.parameters()):
        start, end = end, end + array.nbytes
        tensors[name] = {"dtype": DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(tensors).encode()
    return config, struct.pack("<Q", len(text)) + text, end


def write_hollow(folder: Path, raw: Mapping[str, Any], bits: int | None = None) -> Path:
    """A model's folder, without a tokenizer, whose weights are all holes."""
    folder.mkdir(parents=True, exist_ok=True)
    config, head, size = header(raw, bits)
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return folder
