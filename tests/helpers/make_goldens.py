"""Makes the goldens from Transformers: `cd tests && python -m helpers.make_goldens` (needs the extra `reference`).

Every configuration of grid.py is built and saved by Transformers; its tensors get the values of checkpoints.weight and
are loaded again, so that a golden holds the config, the names and shapes as saved, inputs and logits, but no weights.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AfmoeConfig, AfmoeForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

from helpers.checkpoints import GOLDENS, weight
from helpers.grid import GRID, TRACED

CLASSES = {"afmoe": (AfmoeConfig, AfmoeForCausalLM), "lfm2_moe": (Lfm2MoeConfig, Lfm2MoeForCausalLM)}
LENGTH, PADDED_LENGTH, LONG = 33, 12, 150
REAL = (12, 7, 1)  # tokens of each padded row


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or GRID:
        make(name)


def make(name: str) -> None:
    config_class, model_class = CLASSES[name.split("-")[0]]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model_class(config_class(**GRID[name])).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        with safe_open(path, "np") as stored:
            shapes = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
        save_file({key: weight(key, shape) for key, shape in shapes.items()}, path, {"format": "pt"})
        model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
        if "full_attention" not in model.config.layer_types and model.config.model_type == "lfm2_moe":
            model.config.use_cache = False  # Transformers' cache needs an attention layer
        described = {"config": json.loads((Path(folder) / "config.json").read_text()), "shapes": shapes}
    arrays = run(model, traced=name in TRACED)
    arrays["described"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez_compressed(GOLDENS / f"{name}.npz", **arrays)
    print(name, f"{np.abs(arrays['logits']).max():.2f}")


@torch.no_grad()
def run(model: torch.nn.Module, *, traced: bool) -> dict[str, np.ndarray]:
    """Logits in one shot, padded on either side, and with labels; a longer text and a trace for some."""
    rng = np.random.default_rng(0)
    vocab = model.config.vocab_size
    arrays = {"ids": rng.integers(0, vocab, (2, LENGTH)), "padded_ids": rng.integers(0, vocab, (3, PADDED_LENGTH))}
    columns = np.arange(PADDED_LENGTH)
    arrays["mask_right"] = (columns < np.array(REAL)[:, None]).astype(np.int64)
    arrays["mask_left"] = arrays["mask_right"][:, ::-1].copy()
    ids = torch.tensor(arrays["ids"])
    arrays["logits"] = model(ids).logits.numpy()
    for side in ("left", "right"):
        mask = torch.tensor(arrays[f"mask_{side}"])
        arrays[f"logits_{side}"] = model(torch.tensor(arrays["padded_ids"]), attention_mask=mask).logits.numpy()
    if traced:
        arrays["long_ids"] = rng.integers(0, vocab, (1, LONG))
        arrays["long_logits"] = model(torch.tensor(arrays["long_ids"])).logits.numpy()
        arrays["labels"] = np.where(rng.random(ids.shape) < 0.3, -100, arrays["ids"])
        arrays["loss"] = model(ids, labels=torch.tensor(arrays["labels"])).loss.numpy()
        arrays["position_ids"] = np.sort(rng.integers(0, 400, (2, LENGTH)), axis=1)
        arrays["positioned"] = model(ids, position_ids=torch.tensor(arrays["position_ids"])).logits.numpy()
        out = model(ids, output_hidden_states=True, output_attentions=True, output_router_logits=True)
        for key in ("hidden_states", "attentions", "router_logits"):
            arrays |= {f"{key}_{i}": value.numpy() for i, value in enumerate(out[key])}
    return arrays


if __name__ == "__main__":
    main()
