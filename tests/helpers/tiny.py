"""Tiny random models, made in memory or as a folder."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from afmoe_mlx.checkpoint.save import save_weights
from afmoe_mlx.models import CausalLM, make_model, read_config
from helpers.checkpoints import weight
from helpers.grid import AFMOE, LFM2
from helpers.tiny_tokenizers import byte_level, save

BASES = {"afmoe": AFMOE, "lfm2_moe": LFM2}
ARCHITECTURES = tuple(BASES)


def tiny(model_type: str = "afmoe", **changes: Any) -> CausalLM:
    """An unfused model of the grid's base shape with reproducible weights; config keys may be changed."""
    model = make_model(read_config({"model_type": model_type} | BASES[model_type] | changes))
    model.update(tree_map_with_path(_values, model.parameters()))
    return model


def _values(name: str, array: mx.array) -> mx.array:
    shape = list(array.shape)
    if array.ndim == 3 and "conv" not in name:  # stacked experts: each its own fan-in
        return mx.array(np.stack([weight(f"{name}{i}", shape[1:]) for i in range(shape[0])]))
    return mx.array(weight(name, shape))


def tokens(batch: int, length: int, *, seed: int = 0, vocab: int = 40) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, vocab, (batch, length)))


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_folder(folder: Path, model_type: str = "afmoe", *, template: str | None = TEMPLATE, **changes: Any) -> Path:
    """A whole model folder, tokenizer and chat template included, as our converter would write it."""
    tokenizer = byte_level()
    changes = {"vocab_size": tokenizer.get_vocab_size()} | changes
    model = tiny(model_type, **changes)
    config = {"model_type": model_type} | BASES[model_type] | changes
    files = {} if template is None else {"tokenizer_config": {"chat_template": template, "eos_token": "<|im_end|>"}}
    save(folder, tokenizer, config=config, **files)
    save_weights(folder, dict(tree_flatten(model.parameters())))
    return folder


def scripted(tokens: Iterable[int]) -> Callable[[mx.array], mx.array]:
    """A sampler that says these tokens, then token 0."""
    rest = iter(tokens)
    return lambda logprobs: mx.array([next(rest, 0)])


def two_layers(model_type: str, window: int, **changes: Any) -> CausalLM:
    """One layer that forgets and one that does not."""
    if model_type == "afmoe":
        kinds = ["sliding_attention", "full_attention"]
        return tiny("afmoe", num_hidden_layers=2, layer_types=kinds, sliding_window=window, **changes)
    return tiny("lfm2_moe", num_hidden_layers=2, layer_types=["conv", "full_attention"], conv_L_cache=window, **changes)
