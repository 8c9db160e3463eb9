"""What a model's generation_config.json does to an answer, and what it does not, said where it happens."""

from collections.abc import Mapping
from typing import Any

from ..generation import SamplingOptions, unused_keys
from ..generation.options import SAMPLING
from ..terminal import note
from ..tokenizer import Tokenizer


def tell_unused_keys(tokenizer: Tokenizer) -> None:
    """Name the keys of a loaded model's generation_config.json that are not used, if there are any."""
    if unused := unused_keys(tokenizer.generation_config):
        note(f"generation_config.json: not used: {', '.join(unused)}", dim=True)


def sampling_in_words(tokenizer: Tokenizer, options: Mapping[str, Any]) -> str:
    """The temperature that counts, and whose it is: "temperature 0.15, by the model's generation_config.json"."""
    given = {name: options.get(name) for name in SAMPLING}
    temperature = SamplingOptions.from_generation_config(tokenizer.generation_config, **given).temperature
    is_models = given["temperature"] is None and temperature > 0
    way = ", by the model's generation_config.json" if is_models else "" if temperature else ", the likeliest token"
    return f"temperature {temperature:g}{way}"
