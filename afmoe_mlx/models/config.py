"""Reading a `config.json` into a validated dataclass: what both architectures' configs share."""

import dataclasses
import warnings
from collections.abc import Mapping
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_type_hints

from ..errors import ConfigError
from ..values import is_number, listed, shown
from .rope import ROPE_KEYS, RopeParameters

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")

# Known not to change the logits: bookkeeping, training, generation defaults, and what the loader reads itself.
IGNORED = frozenset(
    """
    architectures attention_dropout auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label
    initializer_range is_encoder_decoder label2id load_balance_coeff model_type name_or_path _name_or_path
    output_attentions output_hidden_states output_router_logits pad_token_id problem_type quantization
    quantization_config return_dict router_aux_loss_coef torch_dtype transformers_version use_cache use_grouped_mm
    _attn_implementation _attn_implementation_internal _experts_implementation unsloth_version unsloth_fixed
    attn_implementation experts_implementation _experts_implementation_internal _commit_hash num_labels torchscript
    tf_legacy_loss use_bfloat16 finetuning_task task_specific_params tokenizer_class prefix sep_token_id
    decoder_start_token_id is_decoder tie_encoder_decoder cross_attention_hidden_size assistant_confidence_threshold
    assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate
    suppress_tokens target_lookbehind temperature top_k top_p typical_p
    """.split()
)

# Would change the logits and is not implemented: the only values accepted.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n_group": (1, None),
    "topk_group": (1, None),
    "num_expert_groups": (1, None),
    "num_limited_groups": (1, None),
    "is_causal": (True,),
    "add_cross_attention": (False,),
    "quantize_activations": (False, None),
    "attention_sinks": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "mlp_bias": (False,),
    "per_layer_config": (None, {}),
    "tie_last_hidden_states": (True, None),
    "kv_sharing_modes": (None,),
    "pruned_heads": (None, {}),
}

# What no model comes near: refused before anything is made of that size.
LARGEST = 2**24
LIMITS = {
    "num_hidden_layers": 10_000,
    "global_attn_every_n_layers": 10_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 10_000,
    "num_shared_experts": 100,
    "max_position_embeddings": 2**53,
    "sliding_window": 2**53,
}


def require(ok: bool, found: str, expected: str) -> None:
    """ConfigError unless `ok`."""
    if not ok:
        raise ConfigError(f"config: {found}: expected {expected}")


def require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value is not None and value >= 1, f"{name} is {value}", "1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What both architectures have. Subclasses add theirs, with Transformers' names and defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_dense_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    layer_types: tuple[str, ...]
    rope: RopeParameters = dataclasses.field(default_factory=RopeParameters)

    LAYER_TYPES: ClassVar[tuple[str, ...]] = ()
    ROPE_THETA: ClassVar[float] = 10000.0
    IGNORED: ClassVar[frozenset[str]] = IGNORED
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL
    ALIASES: ClassVar[dict[str, str]] = {}  # older spellings, which win as they do in Transformers
    DERIVED: ClassVar = ("head_dim", "num_key_value_heads", "layer_types")  # null or absent: from the others

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Read a parsed `config.json`; ConfigError names the key, what was found and what was expected."""
        types = get_type_hints(cls)
        fields = {f.name for f in dataclasses.fields(cls)} - {"rope"}
        null = {name for name in cls.DERIVED if name in raw and raw[name] is None}
        values: dict[str, Any] = {
            k: None if k in null else typed(k, raw[k], types[k]) for k in sorted(fields & raw.keys())
        }
        for name, accepted in cls.NEUTRAL.items():
            require(raw.get(name, accepted[0]) in accepted, f"{name} is {shown(raw.get(name))}", _choices(accepted))
        known = fields | cls.IGNORED | cls.NEUTRAL.keys() | cls.ALIASES.keys() | ROPE_KEYS
        if unknown := set(raw) - known:
            warnings.warn(f"config: unknown keys ignored: {listed(unknown)}", stacklevel=3)
        for alias, name in cls.ALIASES.items():
            if alias in raw:
                values[name] = typed(alias, raw[alias], types[name])
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        max_positions = values.get("max_position_embeddings", defaults["max_position_embeddings"])
        require(max_positions >= 1, f"max_position_embeddings is {max_positions}", "1 or more")
        return cls(**values, rope=RopeParameters.from_config(raw, cls.ROPE_THETA, max_positions))

    def is_float32(self, name: str) -> bool:
        """Whether the weight of a name stays in float32 whatever the model computes in."""
        return name.endswith(".expert_bias")

    def _fill(self, name: str, value: Any) -> None:
        """Give a field left at None its derived value (the dataclass is frozen afterwards)."""
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _validate(self) -> None:
        """Check what both architectures share; called at the end of `__post_init__`."""
        require_positive(self, "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size")
        require_positive(self, "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_experts")
        require_positive(self, "num_experts_per_tok")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        require(
            heads % kv_heads == 0, f"num_attention_heads is {heads}", f"a multiple of num_key_value_heads {kv_heads}"
        )
        k, experts = self.num_experts_per_tok, self.num_experts
        require(k <= experts, f"num_experts_per_tok is {k}", f"at most num_experts, {experts}")
        dense, layers = self.num_dense_layers, self.num_hidden_layers
        require(0 <= dense <= layers, f"num_dense_layers is {dense}", f"between 0 and num_hidden_layers {layers}")
        head_dim = self.head_dim
        require(head_dim > 0 and head_dim % 2 == 0, f"head_dim is {head_dim}", "an even number, 2 or more")
        count = len(self.layer_types)
        require(count == layers, f"layer_types has {count} entries", f"num_hidden_layers, {layers}")
        for kind in self.layer_types:
            require(kind in self.LAYER_TYPES, f"layer_types has {shown(kind)}", _choices(self.LAYER_TYPES))


def _choices(values: tuple[Any, ...]) -> str:
    return " or ".join(repr(v) for v in values)


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type; a JSON 2.0 is an integer too, a string or a boolean is never a number."""
    accepted = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and type(None) in accepted:
        return None
    if any(getattr(t, "__origin__", None) is tuple for t in accepted):
        require(
            isinstance(value, list | tuple) and all(isinstance(v, str) for v in value),
            f"{name} is {shown(value)}",
            "a list of names",
        )
        return tuple(value)
    if bool in accepted and isinstance(value, bool):
        return value
    if str in accepted and isinstance(value, str):
        return value
    if is_number(value):
        if float in accepted:
            return float(value)
        if int in accepted and value == int(value):
            limit = LIMITS.get(name, LARGEST)
            require(value <= limit, f"{name} is {shown(value)}", f"{limit} at most")
            return int(value)
    names = " or ".join(t.__name__ for t in accepted if t is not type(None))
    raise ConfigError(f"config: {name} is {shown(value)}: expected {names}")
