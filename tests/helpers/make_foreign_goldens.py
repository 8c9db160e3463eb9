"""Makes the goldens of other quantizers' checkpoints: `cd tests && python -m helpers.make_foreign_goldens`.

Needs the extras `cpu` and `writers`. Tiny models are quantized and saved by the real writers; a golden holds the file
as they wrote it, its config, inputs, and the logits that Transformers gives in float32 for the weights that the file
stands for exactly.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import unpack_fp4_from_uint8, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from modelopt.torch import quantization as modelopt
from modelopt.torch.export import export_hf_checkpoint
from safetensors.numpy import save_file
from transformers import AfmoeConfig, AfmoeForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

from helpers import foreign
from helpers.checkpoints import GOLDENS, weight
from helpers.grid import AFMOE, LFM2

CLASSES = {
    "afmoe": (AfmoeConfig, AfmoeForCausalLM, AFMOE),
    "lfm2_moe": (Lfm2MoeConfig, Lfm2MoeForCausalLM, LFM2),
}
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "afmoe": SHAPE | {"num_experts": 3, "head_dim": 16},
    "lfm2_moe": SHAPE | {"num_experts": 3, "layer_types": ["conv", "full_attention"]},
}
# sides over 128 that are no multiples of it; rows of keys and values that are no multiple of 8
WIDE = {"hidden_size": 136, "intermediate_size": 200, "num_experts": 2}
UNEVEN = {"head_dim": 10}
IGNORED = ["lm_head", "re:.*router.*", "re:.*feed_forward.gate$"]


def integers(group_size: int, *, symmetric: bool = True, bits: int = 4) -> dict[str, Any]:
    strategy = "group" if group_size > 0 else "channel"
    given = {"group_size": group_size} if group_size > 0 else {}
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, **given)
    return {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}


# name: model type, changes of its shape, how llm-compressor quantizes it; a string is a config of ModelOpt
FORMATS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | str]] = {
    "fp8_block": ("afmoe", WIDE, {"targets": "Linear", "scheme": "FP8_BLOCK"}),
    "fp8_channel": ("lfm2_moe", {}, {"targets": "Linear", "scheme": "FP8_DYNAMIC"}),
    "w4a16": ("afmoe", {}, integers(32)),
    "w4a16_channel": ("lfm2_moe", {}, integers(-1)),
    "w4a16_asymmetric": ("afmoe", UNEVEN, integers(32, symmetric=False) | {"ignore": [*IGNORED, "re:.*o_proj$"]}),
    "w8a16": ("lfm2_moe", {}, integers(32, bits=8)),
    "nvfp4": ("afmoe", {}, {"targets": "Linear", "scheme": "NVFP4"}),
    "nvfp4a16": ("lfm2_moe", {}, {"targets": "Linear", "scheme": "NVFP4A16"}),
    "modelopt_nvfp4": ("afmoe", {}, "NVFP4_DEFAULT_CFG"),
    "modelopt_fp8": ("lfm2_moe", {}, "FP8_DEFAULT_CFG"),
}


def main() -> None:
    for name in sys.argv[1:] or FORMATS:
        make(name)


def make(name: str) -> None:
    model_type, changes, how = FORMATS[name]
    config_class, model_class, base = CLASSES[model_type]
    with tempfile.TemporaryDirectory() as folder:
        model = model_class(config_class(**base | SHAPES[model_type] | changes)).to(torch.bfloat16)
        for key, values in model.state_dict().items():
            values.copy_(torch.tensor(weight(key, values.shape)))
        model.save_pretrained(Path(folder) / "source")
        model = model_class.from_pretrained(Path(folder) / "source", dtype=torch.bfloat16)
        write = with_modelopt if isinstance(how, str) else with_llm_compressor
        write(model, how, Path(folder) / "quantized")
        [file] = (Path(folder) / "quantized").glob("*.safetensors")
        config = json.loads((file.parent / "config.json").read_text())
        stored = foreign.read_file(file.read_bytes())
        check_codes(stored)
        exact = foreign.hub_names(foreign.plain(stored))
        plain = Path(folder) / "plain"
        plain.mkdir()
        save_file(exact, plain / "model.safetensors", {"format": "pt"})
        unquantized = {key: value for key, value in config.items() if key != "quantization_config"}
        (plain / "config.json").write_text(json.dumps(unquantized | {"dtype": "float32"}))
        model = model_class.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 21))
        with torch.no_grad():
            logits = model(torch.tensor(ids)).logits.numpy()
        np.savez_compressed(
            GOLDENS / f"foreign-{name}.npz",
            config=np.frombuffer(json.dumps(config).encode(), np.uint8),
            stored=np.frombuffer(file.read_bytes(), np.uint8),
            ids=ids,
            logits=logits,
        )
    print(name, f"{np.abs(logits).max():.2f}")


def with_llm_compressor(model: torch.nn.Module, how: dict[str, Any], folder: Path) -> None:
    calibration = {}
    if how.get("scheme") == "NVFP4":  # its activations have scales
        ids = np.random.default_rng(1).integers(0, model.config.vocab_size, (4, 32)).tolist()
        data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 32] * 4})
        calibration = {"dataset": data, "num_calibration_samples": 4, "max_seq_length": 32, "processor": Processor()}
    oneshot(model=model, recipe=QuantizationModifier(**{"ignore": IGNORED} | how), **calibration)
    model.save_pretrained(folder, save_compressed=True)


class Processor:
    """What llm-compressor wants beside tokens; it has nothing to do here."""

    def save_pretrained(self, folder: str) -> None:
        pass


def with_modelopt(model: torch.nn.Module, how: str, folder: Path) -> None:
    ids = torch.tensor(np.random.default_rng(1).integers(0, model.config.vocab_size, (4, 32)))
    modelopt.quantize(model, getattr(modelopt, how), lambda quantized: quantized(ids))
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=folder)


def check_codes(stored: foreign.Stored) -> None:
    """The codes are what the writers' own functions unpack."""
    for name, (dtype, values) in stored.items():
        if not name.endswith(".weight_packed"):
            continue
        if dtype == "U8":
            theirs = unpack_fp4_from_uint8(torch.tensor(values), len(values), 2 * values.shape[1], torch.float32)
            ours = np.stack([foreign.FP4[values & 15], foreign.FP4[values >> 4]], -1).reshape(len(values), -1)
        else:
            shape = stored[name.replace("packed", "shape")][1]
            bits = 32 * values.shape[1] // shape[1]
            theirs = unpack_from_int32(torch.tensor(values), bits, torch.Size(shape))
            ours = foreign.unpack(values.view(np.uint32), bits).astype(int) - 2 ** (bits - 1)
        assert np.array_equal(ours, theirs.numpy()), name


if __name__ == "__main__":
    main()
