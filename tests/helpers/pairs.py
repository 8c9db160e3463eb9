"""Tiny models and what was quantized from them, as folders."""

from functools import cached_property
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint.quantized import quantize_all
from afmoe_mlx.checkpoint.save import save_weights
from afmoe_mlx.evaluation import Evaluation, evaluate
from afmoe_mlx.tokenizer import Tokenizer
from helpers.tiny import BASES, TEMPLATE, tiny, tiny_folder
from helpers.tiny_tokenizers import byte_level, save

TEXT = "hello, hello to the world; the world says: " + "".join(chr(33 + i * 7 % 90) for i in range(150))

LENGTH = 33

AFFINE = {"bits": 4, "group_size": 32, "mode": "affine"}


def quantized_folder(folder: Path, model_type: str, parameters: dict[str, Any] = AFFINE, **changes: Any) -> Path:
    """What `tiny_folder` makes, quantized."""
    tokenizer = byte_level()
    changes = {"vocab_size": tokenizer.get_vocab_size()} | changes
    model = tiny(model_type, **changes)
    quantize_all(model, parameters)
    config = {"model_type": model_type} | BASES[model_type] | changes
    files = {"tokenizer_config": {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}}
    save(folder, tokenizer, config=config | {"quantization": parameters}, **files)
    save_weights(folder, dict(tree_flatten(model.parameters())))
    return folder


class Pair:
    """A plain tiny model and its 4-bit form, a text, and the sequences that it is cut into."""

    def __init__(self, folder: Path, model_type: str) -> None:
        self.plain = tiny_folder(folder / "plain", model_type)
        self.quantized = quantized_folder(folder / "quantized", model_type)
        self.text = folder / "text.txt"
        self.text.write_text(TEXT)
        ids = Tokenizer.from_folder(self.plain).encode(TEXT)
        self.sequences = [ids[i : i + LENGTH] for i in range(0, len(ids), LENGTH)]

    @cached_property
    def evaluation(self) -> Evaluation:
        """What `evaluate` gives without options."""
        return self.evaluate()

    def evaluate(self, **options: Any) -> Evaluation:
        options = {"reference": self.plain, "text": self.text, "sequence_length": LENGTH} | options
        return evaluate(self.quantized, **options)
