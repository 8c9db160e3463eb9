"""What joins the packages below into one call for Python."""

from pathlib import Path

import mlx.core as mx

from .checkpoint import load_model, resolve
from .errors import InputError
from .models import CausalLM
from .tokenizer import Tokenizer

# The model that comes with the package, by the name "demo".
DEMO = Path(__file__).parent / "demo" / "model"


def load(
    source: str | Path, *, dtype: mx.Dtype | str | None = None, revision: str | None = None
) -> tuple[CausalLM, Tokenizer]:
    """A model, ready to run, and its tokenizer, from a folder, a short name, a Hub id or "demo".

    dtype: of the weights and the computation; by default the checkpoint's, float32 on the CPU. revision: a branch, tag
    or commit on the Hub. Raises ConfigError, CheckpointError, TokenizerError, HubError or
    InputError.
    """
    if source == "demo" and revision is not None:
        raise InputError("the demo comes with the package and has no revisions: leave out the revision")
    folder = DEMO if source == "demo" else resolve(source, revision=revision)
    tokenizer = Tokenizer.from_folder(folder)
    return load_model(folder, dtype=dtype)[0], tokenizer
