"""`Calibration`: the options of a calibration: its text, method and number of tokens."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConversionError, InputError

METHODS = ("scales", "gptq", "distil")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Options of a calibration, which chooses quantized weights by a text. Raises ConversionError for invalid ones."""

    text: str | Path | None = None
    """A text, or a `.jsonl` of samples or conversations; by default the text that comes with the package."""
    method: str = "gptq"
    """"scales": scales and offsets that weigh each input channel by its mean square. "gptq": those, and every column
    makes up for the rounding of those before it. "distil": that, and then scales, offsets and norms learn from the
    original model's predictions."""
    all_experts: bool = True
    """Whether every expert is calibrated on every token, or on those alone that are routed to it."""
    tokens: int = 8192
    """How many of the text are used, at most; memory and time grow with them."""
    seed: int = 0
    """Chooses which."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConversionError(f"calibration method is {self.method!r}: expected one of {', '.join(METHODS)}")
        if self.tokens < 1:
            raise ConversionError(f"calibration tokens is {self.tokens}: expected 1 or more")

    @property
    def in_words(self) -> str:
        """For a model card; without the folder of the text."""
        text = Path(self.text).name if self.text else "the built-in text"
        experts = "all tokens for every expert" if self.all_experts else "routed tokens alone"
        return f"{self.method}, {self.tokens:,} tokens of {text}, {experts}"

    @classmethod
    def of(cls, given: Any) -> "Calibration | None":
        """What `convert(calibrate=)` was given: one of these, a text's path, or True for the package's text; None for
        None and False. InputError for anything else."""
        if given is None or given is False:
            return None
        if isinstance(given, cls):
            return given
        if given is True:
            return cls()
        if isinstance(given, str | Path):
            return cls(text=Path(os.path.expanduser(given)))
        raise InputError(f"calibrate is a {type(given).__name__}: expected a Calibration, a text file's path, or True")
