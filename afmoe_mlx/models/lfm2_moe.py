"""LFM2-MoE, Liquid's LFM2-8B-A1B and successors: reproduces Transformers' `Lfm2MoeForCausalLM`.

A layer mixes positions either by a short gated convolution or by grouped-query attention. The first `num_dense_layers`
have a dense MLP, the others experts chosen by a sigmoid router. Module names are those of mlx-lm's files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from ..cache import ConvCache, KVCache, KVQuantization
from ..errors import InputError
from ..values import shown
from .attention import merge_heads, split_heads
from .causal_lm import CausalLM
from .chunk import Chunk
from .config import IGNORED, NEUTRAL, ModelConfig, require, require_positive, typed
from .layered import Backbone
from .layers import MLP, RMSNorm
from .linear import Embedding, Linear
from .moe import Experts, route
from .rope import Place, Rope
from .rows import RowStep
from .trace import Trace


@dataclass(frozen=True, kw_only=True)
class Lfm2MoeConfig(ModelConfig):
    """Transformers' `Lfm2MoeConfig` with its defaults."""

    vocab_size: int = 65536
    hidden_size: int = 2048
    intermediate_size: int = 7168
    moe_intermediate_size: int = 1792
    num_hidden_layers: int = 32
    num_dense_layers: int = 2
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = None  # type: ignore[assignment]
    max_position_embeddings: int = 128_000
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    num_experts: int = 32
    num_experts_per_tok: int = 4
    use_expert_bias: bool = True
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    conv_L_cache: int = 3
    conv_bias: bool = False
    layer_types: tuple[str, ...] = None  # type: ignore[assignment]

    LAYER_TYPES: ClassVar = ("conv", "full_attention")
    ROPE_THETA: ClassVar = 1000000.0
    IGNORED: ClassVar = IGNORED | {"full_attn_idxs"}
    NEUTRAL: ClassVar = NEUTRAL | {"hidden_act": ("silu",)}
    ALIASES: ClassVar = {"tie_embedding": "tie_word_embeddings"}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        if raw.get("layer_types") is None and (indices := raw.get("full_attn_idxs")) is not None:
            layers = typed("num_hidden_layers", raw.get("num_hidden_layers", cls.num_hidden_layers), int)
            ok = isinstance(indices, list) and all(isinstance(i, int) and 0 <= i < layers for i in indices)
            require(ok, f"full_attn_idxs is {shown(indices)}", f"a list of layers, 0 to {layers - 1}")
            raw = dict(raw) | {"layer_types": ["full_attention" if i in indices else "conv" for i in range(layers)]}
        return super().from_dict(raw)

    def __post_init__(self) -> None:
        self._fill("head_dim", self.hidden_size // max(self.num_attention_heads, 1))
        require(self.layer_types is not None, "layer_types is missing", "one name a layer")
        self._validate()
        require_positive(self, "conv_L_cache")
        require(self.norm_eps >= 0, f"norm_eps is {self.norm_eps}", "0 or more")


class Attention(nn.Module):
    """Grouped-query attention with normalized, rotated queries and keys.

    Fused, `qkv_proj` stands for all three projections, and `qk_layernorm` for both norms.
    """

    def __init__(self, config: Lfm2MoeConfig, rope: Rope) -> None:
        super().__init__()
        self._rope = rope
        self.head_dim = config.head_dim
        hidden = config.hidden_size
        self.q_size = config.num_attention_heads * config.head_dim
        self.kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(hidden, self.q_size, bias=False)
        self.k_proj = Linear(hidden, self.kv_size, bias=False)
        self.v_proj = Linear(hidden, self.kv_size, bias=False)
        self.out_proj = Linear(self.q_size, hidden, bias=False)
        self.q_layernorm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_layernorm = RMSNorm(config.head_dim, config.norm_eps)

    def project(self, x: mx.array, place: Place) -> tuple[mx.array, ...]:
        """(B, L, D) -> queries, keys and values (B, heads, L, head_dim)."""
        if "qkv_proj" in self:
            qk, v = mx.split(self.qkv_proj(x), [self.q_size + self.kv_size], axis=-1)
            qk = self._rope(self.qk_layernorm(split_heads(qk, self.head_dim)), place)
            q, k = mx.split(qk, [self.q_size // self.head_dim], axis=1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
            q = self._rope(self.q_layernorm(split_heads(q, self.head_dim)), place)
            k = self._rope(self.k_layernorm(split_heads(k, self.head_dim)), place)
        return q, k, split_heads(v, self.head_dim)

    def output(self, y: mx.array) -> mx.array:
        """Attended values (B, H, L, head_dim) -> (B, L, D)."""
        return self.out_proj(merge_heads(y))


class ShortConv(nn.Module):
    """A causal convolution of a few taps, one filter a channel, gated on both sides."""

    def __init__(self, config: Lfm2MoeConfig) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.conv_bias
        self.history = config.conv_L_cache - 1
        self.in_proj = Linear(hidden, 3 * hidden, bias=bias)
        self.conv = nn.Conv1d(hidden, hidden, config.conv_L_cache, groups=hidden, bias=bias)
        self.out_proj = Linear(hidden, hidden, bias=bias)

    def project(self, x: mx.array, valid: mx.array | None) -> tuple[mx.array, ...]:
        """(B, L, D) -> the convolution's inputs and the gate of its outputs, both (B, L, D); inputs at pads are zero.

        A bias makes something of a zero: those of a row in a cache are zeroed again by `recall`.
        """
        if valid is not None:
            x = mx.where(valid[..., None], x, 0)
        b, c, x = mx.split(self.in_proj(x), 3, axis=-1)
        return b * x, c

    def recall(self, x: mx.array, chunk: Chunk | RowStep, cache: KVCache | None) -> mx.array:
        """The inputs with those before them that the convolution needs."""
        if cache is not None:
            if chunk.valid is not None:
                # a row in a cache begins where its tokens do, so even a bias has not passed here before
                x = mx.where(chunk.valid[..., None], x, 0)
            (x,) = cache.update(x)
        missing = self.history + chunk.length - x.shape[1]
        return mx.pad(x, [(0, 0), (missing, 0), (0, 0)]) if missing else x

    def output(self, x: mx.array, c: mx.array) -> mx.array:
        """Inputs (B, history + L, D) and the gate (B, L, D) -> (B, L, D)."""
        return self.out_proj(c * self.conv(x))


class SparseMoe(nn.Module):
    """Experts of a router's choice."""

    ROUTED = "switch_mlp"

    def __init__(self, config: Lfm2MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Linear(config.hidden_size, config.num_experts, bias=False)
        sizes = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.switch_mlp = Experts(*sizes, chosen=config.num_experts_per_tok)
        if config.use_expert_bias:
            self.expert_bias = mx.zeros((config.num_experts,))

    def __call__(self, x: mx.array, trace: Trace | None) -> mx.array:
        """(B, L, D) -> the same in float32, as the experts' outputs are summed."""
        logits = self.gate(x)
        weights, experts = self.route(logits)
        if trace is not None:
            trace.add("router_logits", logits.astype(mx.float32).reshape(-1, logits.shape[-1]))
            trace.add("selected_experts", experts.reshape(-1, experts.shape[-1]))
        return self.combine(x, experts, weights)

    def choose(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(..., D) -> the experts (..., k) that `combine` takes, and their weights."""
        weights, experts = self.route(self.gate(x))
        return experts, weights

    def combine(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """What experts (..., k), with these weights, make of x (..., D): the same in float32."""
        return self.with_shared(x, self.switch_mlp(x, experts, weights))

    def with_shared(self, x: mx.array, y: mx.array) -> mx.array:
        """What the routed experts made of x: there are no others."""
        return y

    def route(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """Router logits (..., E) -> weights (..., k) and experts (..., k)."""
        return route(
            logits,
            self.get("expert_bias"),
            k=self.config.num_experts_per_tok,
            normalize=self.config.norm_topk_prob,
            eps=1e-6,
            scale=self.config.routed_scaling_factor,
        )


class DecoderLayer(nn.Module):
    """A layer in three steps: `project`, `attend`, which alone knows the cache, and `finish`."""

    def __init__(self, config: Lfm2MoeConfig, rope: Rope, layer_idx: int) -> None:
        super().__init__()
        self.is_attention = config.layer_types[layer_idx] == "full_attention"
        if self.is_attention:
            self.self_attn = Attention(config, rope)
        else:
            self.conv = ShortConv(config)
        is_dense = layer_idx < config.num_dense_layers
        self.feed_forward = MLP(config.hidden_size, config.intermediate_size) if is_dense else SparseMoe(config)
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def project(self, h: mx.array, place: Place, valid: mx.array | None = None) -> tuple[mx.array, ...]:
        """(B, L, D) -> what `attend` takes; valid: (B, L), false at padding."""
        r = self.operator_norm(h)
        return self.self_attn.project(r, place) if self.is_attention else self.conv.project(r, valid)

    def attend(
        self, projected: tuple[mx.array, ...], chunk: Chunk | RowStep, cache: KVCache | None, trace: Trace | None = None
    ) -> tuple[mx.array, ...]:
        """What these tokens gather from those before them, for `finish`."""
        if not self.is_attention:
            x, gate = projected
            return self.conv.recall(x, chunk, cache), gate
        q, k, v = projected
        if cache is not None:
            k, v = cache.update(k, v)
        return (chunk.attend(q, k, v, trace=trace),)

    def finish(self, h: mx.array, attended: tuple[mx.array, ...], trace: Trace | None = None) -> mx.array:
        """The layer's output (B, L, D)."""
        h, r = self.before_mlp(h, attended)
        mlp = self.feed_forward
        return self.after_mlp(h, mlp(r, trace) if isinstance(mlp, SparseMoe) else mlp(r))

    def before_mlp(self, h: mx.array, attended: tuple[mx.array, ...]) -> tuple[mx.array, mx.array]:
        """The residual stream (B, L, D) after attention or convolution, and what the MLP takes of it."""
        h = h + (self.self_attn if self.is_attention else self.conv).output(*attended)
        return h, self.ffn_norm(h)

    def after_mlp(self, h: mx.array, y: mx.array) -> mx.array:
        """The layer's output (B, L, D), y being the MLP's."""
        return h + y.astype(h.dtype)

    @property
    def sparse(self) -> SparseMoe | None:
        """The mixture of experts; None in a dense layer."""
        return self.feed_forward if isinstance(self.feed_forward, SparseMoe) else None


class Lfm2MoeModel(Backbone):
    def __init__(self, config: Lfm2MoeConfig, rope: Rope) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config, rope, i) for i in range(config.num_hidden_layers)]
        self.embedding_norm = RMSNorm(config.hidden_size, config.norm_eps)


class Lfm2MoeForCausalLM(CausalLM):
    """The whole model; see `CausalLM.__call__` for its inputs."""

    config: Lfm2MoeConfig

    def __init__(self, config: Lfm2MoeConfig) -> None:
        rope = Rope(config.head_dim, config.rope)
        super().__init__(config, Lfm2MoeModel(config, rope), rope)

    def final_norm(self, h: mx.array) -> mx.array:
        return self.model.embedding_norm(h)

    def check(self, chunk: Chunk) -> None:
        if self.config.conv_bias and chunk.left_padded and chunk.cache is not None:
            raise InputError(
                "left padding with a cache and conv_bias: Transformers' own results differ from the row alone there;"
                " pad on the right instead"
            )

    def layer_cache(self, kind: str, slack: int, kv_quantization: KVQuantization | None) -> KVCache:
        if kind == "full_attention":
            return self.full_cache(kv_quantization)
        return ConvCache(self.config.conv_L_cache, slack)
