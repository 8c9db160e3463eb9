"""What joins the packages below into one call for Python."""

from pathlib import Path

import mlx.core as mx

from .cache import KVQuantization, check_kv_quantization
from .checkpoint import load_model, resolve
from .checkpoint.load import parse_dtype
from .errors import InputError
from .footprint import fit_check
from .models import CausalLM
from .tokenizer import Tokenizer

# The model that comes with the package, by the name "demo".
DEMO = Path(__file__).parent / "demo" / "model"


def load(
    source: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    context: int | None = None,
    kv_quantization: KVQuantization | None = None,
    force: bool = False,
) -> tuple[CausalLM, Tokenizer]:
    """A model, ready to run, and its tokenizer, from a folder, a short name, a Hub id or "demo".

    dtype: of the weights and the computation; by default the checkpoint's, float32 on the CPU. revision: a branch, tag
    or commit on the Hub. context: tokens of conversation that memory must have room for beside the weights, 4096
    unless told. kv_quantization: how caches keep the keys and values of full-attention layers, which counts there too.
    force: load even what does not fit. Raises FitError before weights are fetched or read, ConfigError,
    CheckpointError, TokenizerError, HubError or InputError.
    """
    if source == "demo" and revision is not None:
        raise InputError("the demo comes with the package and has no revisions: leave out the revision")
    check_kv_quantization(kv_quantization)
    wanted = parse_dtype(dtype)
    check = None if force else fit_check(str(source), context=context, dtype=wanted, kv_quantization=kv_quantization)
    folder = DEMO if source == "demo" else resolve(source, revision=revision, check=check)
    tokenizer = Tokenizer.from_folder(folder)
    model, config = load_model(folder, dtype=wanted, check=check)
    if kv_quantization is not None:
        model.kv_quantization = kv_quantization.of_heads(config.head_dim)
    return model, tokenizer
