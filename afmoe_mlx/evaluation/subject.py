"""A model under evaluation, opened without reading its weights, and its parts as they are needed."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .. import device
from ..api import DEMO
from ..checkpoint import open_model, resolve
from ..checkpoint.files import find_weights, read_config_json, read_headers, stored_dtype
from ..checkpoint.foreign import translate
from ..checkpoint.verify import Headers
from ..errors import InputError
from ..footprint import count_parameters
from ..footprint.weights import stored_weights
from ..models import CausalLM, ModelConfig, read_config
from ..tokenizer import Tokenizer
from ..values import shown
from .divergence import Head
from .matrices import Matrices

# What must agree for two models' tensors and choices to be compared.
SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_dense_layers",
    "layer_types",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "num_shared_experts",
    "conv_L_cache",
)


@dataclass(frozen=True)
class Subject:
    """A model's folder, and what its small files say."""

    name: str
    folder: Path
    config: ModelConfig
    headers: Headers
    tokenizer: Tokenizer
    adapt: Callable[[CausalLM], None] | None = None
    """Puts adapters beside its layers' weights."""

    @classmethod
    def find(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        adapt: Callable[[CausalLM], None] | None = None,
    ) -> "Subject":
        """The model of a folder, a short name, a Hub id or "demo", fetched if need be, its weights not yet read.

        Raises HubError, ConfigError, CheckpointError, TokenizerError and InputError.
        """
        if source == "demo" and revision is not None:
            raise InputError("the demo comes with the package and has no revisions: leave out the revision")
        folder = DEMO if source == "demo" else resolve(source, revision=revision)
        raw = read_config_json(folder)
        config = read_config(raw)
        _, headers = translate(raw, read_headers(find_weights(folder)))
        return cls(str(source), folder, config, headers, Tokenizer.from_folder(folder), adapt)

    @property
    def dtype(self) -> mx.Dtype:
        """That it computes in."""
        return device.compute_dtype(stored_dtype(self.headers))

    @property
    def bits_per_weight(self) -> float:
        """Bits of everything stored for each weight of the model unquantized."""
        stored = stored_weights(self.config, self.headers, self.dtype).stored
        return 8 * stored / count_parameters(self.config).total

    def open(self) -> CausalLM:
        """The model in the dtype that it computes in, unfused, its weights not yet read."""
        with warnings.catch_warnings(action="ignore"):  # reading the config has warned of the same
            model = open_model(self.folder)
        if self.adapt is not None:
            self.adapt(model)
            if "lora_a" in model.get("lm_head", ()):
                raise InputError("an evaluation takes the head as it is stored: expected an adapter of layers alone")
        return model

    def head(self) -> Head:
        """The head alone, in float32 whatever the model computes in: rounding its logits would count as divergence."""
        matrices = self.matrices()
        pieces = []
        for piece in matrices.float32_rows("lm_head" if "lm_head" in matrices else "model.embed_tokens"):
            mx.eval(piece)  # in turn, so that what each is made of is dropped
            pieces.append(piece)
        return lambda h: mx.concatenate([h.astype(mx.float32) @ piece.T for piece in pieces], axis=-1)

    def matrices(self) -> Matrices:
        """The model's matrices as they are stored, not yet read."""
        return Matrices(self.folder)

    def check_comparable(self, reference: "Subject", sequences: list[list[int]]) -> None:
        """InputError unless a reference has this model's shape, and its tokens in `sequences` mean the same text."""
        if type(self.config) is not type(reference.config):
            kinds = [type(subject.config).__name__.removesuffix("Config") for subject in (reference, self)]
            raise InputError(
                f"the reference is {kinds[0]}, the model {kinds[1]}: expected what the model was made from"
            )
        for name in SHAPE:
            theirs, ours = (getattr(subject.config, name, None) for subject in (reference, self))
            if theirs != ours:
                differs = f"the reference's {name} is {shown(theirs)}, the model's {shown(ours)}"
                raise InputError(f"{differs}: expected what the model was made from")
        tokenizer, other = self.tokenizer, reference.tokenizer
        if tokenizer.vocab_size != other.vocab_size:
            found = f"knows {other.vocab_size} tokens, the model's {tokenizer.vocab_size}"
        elif any(tokenizer.decode(tokens) != other.decode(tokens) for tokens in sequences):
            found = "means other tokens by the same ids than the model's"
        else:
            return
        raise InputError(f"the reference's tokenizer {found}: expected what the model was made from")
