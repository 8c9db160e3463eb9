"""Makes the self-test's goldens: `cd tests && python -m helpers.make_selftest_goldens` (needs the extra `reference`).

Transformers computes the logits of the tiny models of `afmoe_mlx.selftest` from their weights, saved under its names.
"""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from mlx.utils import tree_flatten
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from afmoe_mlx.selftest.models import CONFIGS, TinyModel, text
from afmoe_mlx.selftest.suite import GOLDEN_STEP, GOLDENS

PROJECTIONS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def main() -> None:
    save_file({name: logits(name)[::GOLDEN_STEP].copy() for name in CONFIGS}, GOLDENS)
    print(f"{GOLDENS.name}: {GOLDENS.stat().st_size} bytes")


@torch.no_grad()
def logits(name: str) -> np.ndarray:
    """Transformers' logits (L, vocab) of the text."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(published_tensors(name), Path(folder) / "model.safetensors", {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(CONFIGS[name]))
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()(torch.tensor([text()])).logits[0].numpy()


def published_tensors(name: str) -> dict[str, np.ndarray]:
    """A tiny model's weights in the Hub's layout: a tensor an expert, LFM2-MoE's own names."""
    result = {}
    for path, array in tree_flatten(TinyModel(name).plain().parameters()):
        path = path.replace("switch_mlp", "experts")
        values = np.array(array)
        if path.endswith("conv.conv.weight"):
            values = np.ascontiguousarray(values.swapaxes(1, 2))
        if "feed_forward" in path:
            path = re.sub("|".join(PROJECTIONS), lambda match: PROJECTIONS[match[0]], path)
        if match := re.fullmatch(r"(.*\.experts)\.(\w+\.weight)", path):
            result |= {f"{match[1]}.{i}.{match[2]}": expert for i, expert in enumerate(values)}
        else:
            result[path] = values
    return result


if __name__ == "__main__":
    main()
