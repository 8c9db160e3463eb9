"""Models whose experts are read, and the sources they are read from: the files, or what a test has in memory."""

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from afmoe_mlx import load_model
from afmoe_mlx.checkpoint.save import save_weights, write_json
from afmoe_mlx.models import CausalLM, ExpertPlacement
from afmoe_mlx.models.moe import Experts
from helpers.tiny import BASES, tiny

# Wide enough for every format, with a layer that has no experts and two that have.
WIDE = {"hidden_size": 64, "moe_intermediate_size": 64, "head_dim": 32, "num_hidden_layers": 3, "num_experts": 6}
EXPERTS = re.compile(r"experts\.|switch_mlp\.")
SHORT = {"afmoe": "sliding_attention", "lfm2_moe": "conv"}


def wide_folder(
    folder: Path, model_type: str, *, dtype: mx.Dtype = mx.bfloat16, global_scale: bool = False, **quantization: Any
) -> Path:
    """A tiny model's folder without a tokenizer; its experts quantized, or in `dtype` as everything else is."""
    changes = WIDE | {"layer_types": [SHORT[model_type], "full_attention", SHORT[model_type]]}
    model = tiny(model_type, **changes)
    nn.Module.set_dtype(model, dtype)
    config = {"model_type": model_type} | BASES[model_type] | changes
    if quantization:
        given = quantization | ({"global_scale": True} if global_scale else {})
        nn.quantize(model, class_predicate=lambda path, _: given if EXPERTS.search(path) else False)
        config["quantization"] = quantization
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    save_weights(folder, dict(tree_flatten(model.parameters())))
    return folder


def streamed(folder: Path | str, slots: int, whole_layers: int = 0, **options: Any) -> CausalLM:
    """The model of a folder with room for so many experts a layer."""
    return load_model(folder, place=lambda *_: ExpertPlacement(slots, whole_layers), **options)[0]


class MemorySource:
    """A `models.pool.ExpertSource` of experts whose every weight is their number; `during` runs while they are read."""

    def __init__(self, size: int) -> None:
        self.tensors: Mapping[str, mx.Dtype] = {
            f"{name}.weight": mx.float32 for name in ("gate_proj", "up_proj", "down_proj")
        }
        self.expert_bytes, self.identity = 3 * 4 * size, "numbers"
        self.batches: list[list[int]] = []
        self.during: Callable[[], None] = lambda: None

    def read(self, wanted: Mapping[int, Sequence[memoryview]]) -> "MemorySource":
        self.batches.append(list(wanted))
        self._wanted = wanted
        return self

    def begin(self) -> None:
        for expert, views in self._wanted.items():
            for view in views:
                view[:] = array("f", [expert]).tobytes() * (view.nbytes // 4)

    def wait(self) -> float:
        self.during()
        return 0.0


def slots_of(experts: int, slots: int, width: int = 4, pinned: int = 0) -> Experts:
    """The module whose arrays are a pool's slots; those of the pinned ones, which are last, hold their numbers."""
    module = Experts(experts, width, width, chosen=1)
    last = mx.broadcast_to(mx.arange(experts - pinned, experts)[:, None, None], (pinned, width, width))
    for linear in (module.gate_proj, module.up_proj, module.down_proj):
        linear.weight = mx.concatenate([mx.zeros((slots, width, width)), last.astype(mx.float32)])
    return module
