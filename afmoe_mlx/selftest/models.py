"""The tiny models of the self-test, in the dtypes and quantizations that models are published in, and their text."""

import random
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path, tree_unflatten

from ..checkpoint.quantized import parameters, quantize_all
from ..models import CausalLM, fuse, make_model, read_config
from .weights import in_every_dtype, weight

COMMON = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_dense_layers": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
}
AFMOE = COMMON | {
    "model_type": "afmoe",
    "head_dim": 128,
    "num_shared_experts": 1,
    "route_scale": 2.826,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "mup_enabled": True,
}
LFM2 = COMMON | {
    "model_type": "lfm2_moe",
    "head_dim": 64,
    "layer_types": ["conv", "full_attention", "conv"],
    "tie_word_embeddings": True,
}
# With the head size of each published model, and as many query heads for each of keys and values.
CONFIGS: dict[str, dict[str, Any]] = {
    "Trinity Nano": AFMOE | {"num_attention_heads": 8, "num_key_value_heads": 2},
    "Trinity Mini": AFMOE | {"num_attention_heads": 8, "num_key_value_heads": 1},
    "Trinity Large": AFMOE | {"num_attention_heads": 12, "num_key_value_heads": 2},
    "LFM2": LFM2 | {"num_attention_heads": 8, "num_key_value_heads": 2},
}
KEYS = ("weight", "scales", "biases")

# A module's quantized arrays, by its path and their name in KEYS.
Stored = dict[str, dict[str, mx.array]]


def text(length: int = 104) -> list[int]:
    """The tokens that every check reads: past the window, and past the block of queries that share a slice of keys."""
    return [byte % COMMON["vocab_size"] for byte in random.Random("text").randbytes(length)]


class TinyModel:
    """One of CONFIGS with its weights, from which models of every form are made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = read_config(CONFIGS[name])
        self._quantized: dict[str, Stored] = {}

    def plain(self, mode: str | None = None) -> CausalLM:
        """In float32 and unfused; mode: with its weights as that quantization leaves them."""
        model = self._made()
        options: Any = parameters({"mode": mode}) if mode else {}
        for path, stored in self._quantized_arrays(mode).items():
            plain = mx.dequantize(stored["weight"], stored["scales"], stored.get("biases"), **options, dtype=mx.float32)
            model.update(tree_unflatten([(f"{path}.weight", plain)]))
        mx.eval(model.parameters())
        return model

    def loaded(self, dtype: mx.Dtype, mode: str | None = None, *, fused: bool = True) -> CausalLM:
        """The same model as the loader would make it: quantized by `mode`, in `dtype`, fused."""
        model = self._made()
        with mx.stream(mx.cpu):  # as in the twin, so that both have the same packed words
            if mode is not None:
                quantize_all(model, parameters({"mode": mode}))
            for path, stored in self._quantized_arrays(mode).items():
                model.update(tree_unflatten([(f"{path}.{key}", array) for key, array in stored.items()]))
            model.update(tree_map_with_path(lambda path, array: _cast(path, array, dtype), model.parameters()))
            mx.eval(model.parameters())
        model.dtype = dtype
        if fused:
            fuse(model)
            mx.eval(model.parameters())
        return model

    def _made(self) -> CausalLM:
        """The model in float32, whatever it has beside weights made by the default device."""
        model = make_model(self.config)
        with mx.stream(mx.cpu):
            values = tree_map_with_path(lambda path, array: weight(path, array.shape, self.config), model.parameters())
            model.update(values)
        model.eval()
        return model

    def _quantized_arrays(self, mode: str | None) -> Stored:
        """What `mx.quantize` makes of each module that our converter would quantize, by the module's path."""
        if mode is None:
            return {}
        if mode not in self._quantized:
            model = self._made()
            quantize_all(model, parameters({"mode": mode}))
            self._quantized[mode] = {
                path: {key: in_every_dtype(module[key]) for key in KEYS if key in module}
                for path, module in model.named_modules()
                if "scales" in module
            }
            mx.eval(self._quantized[mode])
        return self._quantized[mode]


def _cast(path: str, array: mx.array, dtype: mx.Dtype) -> mx.array:
    """As the loader casts: what shifts a choice of experts stays float32."""
    is_kept = path.endswith("expert_bias") or not mx.issubdtype(array.dtype, mx.floating)
    return array if is_kept else array.astype(dtype)
