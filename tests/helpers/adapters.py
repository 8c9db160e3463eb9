"""Adapters of tiny models, as mlx-lm saves them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from afmoe_mlx.models import CausalLM, read_config

RANK, SCALE = 4, 1.5
TARGETS = {
    "afmoe": ("q_proj", "k_proj", "v_proj", "o_proj", "self_attn.gate_proj", "mlp.gate_proj", "up_proj", "down_proj"),
    "lfm2_moe": ("q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "gate_proj", "up_proj", "down_proj"),
}
EXPERTS = ("experts.", "switch_mlp.")


def targets(model: CausalLM, model_type: str, *, experts: bool) -> dict[str, tuple[int, ...]]:
    """Linear maps of an unfused model that an adapter is made for, with (experts,) in and out."""
    found = {}
    for path, module in model.named_modules():
        is_expert = any(part in path for part in EXPERTS) and "shared" not in path
        if any(path.endswith(name) for name in TARGETS[model_type]) and is_expert <= experts and "weight" in module:
            *stacked, out, width = module.weight.shape
            width = width * 32 // module.bits if "scales" in module else width
            found[path] = (*stacked, width, out)
    return found


def arrays(shapes: dict[str, tuple[int, ...]], *, dora: bool = False, seed: int = 0) -> dict[str, mx.array]:
    """An adapter's tensors by mlx-lm's names."""
    generator = np.random.default_rng(seed)
    made = {}
    for path, (*stacked, width, out) in shapes.items():
        a, b = ((*stacked, RANK, width), (*stacked, out, RANK)) if stacked else ((width, RANK), (RANK, out))
        made[f"{path}.lora_a"] = mx.array(generator.normal(0, 0.2, a).astype(np.float32))
        made[f"{path}.lora_b"] = mx.array(generator.normal(0, 0.2, b).astype(np.float32))
        if dora:
            made[f"{path}.m"] = mx.array(generator.uniform(0.5, 2, (out,)).astype(np.float32))
    return made


def save(folder: Path, tensors: dict[str, mx.array], kind: str = "lora", layers: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    keys = sorted({name.split(".", 3)[3].rpartition(".")[0] for name in tensors if name.startswith("model.layers.")})
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    return folder


# What mlx-lm has no default for.
FOR_MLX_LM = {"norm_topk_prob": True, "use_expert_bias": True, "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3}


def theirs(folder: Path, adapter: Path | None = None) -> Any:
    """mlx-lm's model of a folder, in float32, with an adapter if one is given."""
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    config = dataclasses.asdict(read_config(raw := json.loads((folder / "config.json").read_text()))) | raw | FOR_MLX_LM
    (folder / "config.json").write_text(json.dumps(config, default=lambda rope: None))
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    if adapter is not None:
        model = load_adapters(model, str(adapter))
    model.eval()
    return model
