"""AFMoE, Arcee's Trinity models: reproduces Transformers' `AfmoeForCausalLM`.

Every layer normalizes before and after attention and before and after its MLP. Attention is gated; sliding layers
rotate queries and keys, full ones have no positions at all. The first `num_dense_layers` have a dense MLP, the others
experts chosen by a sigmoid router, and shared experts that every token takes.
"""

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache, KVQuantization, RotatingKVCache
from ..values import shown
from .attention import merge_heads, split_heads
from .causal_lm import CausalLM
from .chunk import Chunk
from .config import ACTIVATIONS, ModelConfig, require
from .layered import Backbone
from .layers import MLP, RMSNorm
from .linear import Embedding, Linear
from .moe import Experts, route
from .rope import Place, Rope
from .rows import RowStep
from .streamed import StreamedExperts
from .trace import Trace


@dataclass(frozen=True, kw_only=True)
class AfmoeConfig(ModelConfig):
    """Transformers' `AfmoeConfig` with its defaults; `score_func` and `route_norm` as in Arcee's own code."""

    vocab_size: int = 200192
    hidden_size: int = 2048
    intermediate_size: int = 6144
    moe_intermediate_size: int = 1408
    num_hidden_layers: int = 32
    num_dense_layers: int = 1
    num_attention_heads: int = 16
    num_key_value_heads: int = None  # type: ignore[assignment]
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 16384
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    num_experts: int = 64
    num_experts_per_tok: int = 6
    num_shared_experts: int = 2
    route_scale: float = 1.0
    score_func: str = "sigmoid"
    route_norm: bool = True
    global_attn_every_n_layers: int = 4
    sliding_window: int | None = 1024
    mup_enabled: bool = False
    attention_bias: bool = False
    layer_types: tuple[str, ...] = None  # type: ignore[assignment]

    LAYER_TYPES: ClassVar = ("sliding_attention", "full_attention")

    def __post_init__(self) -> None:
        self._fill("num_key_value_heads", self.num_attention_heads)
        self._fill("head_dim", self.hidden_size // max(self.num_attention_heads, 1))
        every = self.global_attn_every_n_layers
        require(every >= 1, f"global_attn_every_n_layers is {every}", "1 or more")
        kinds = (every - 1) * ["sliding_attention"] + ["full_attention"]
        self._fill("layer_types", tuple(kinds[i % every] for i in range(self.num_hidden_layers)))
        self._validate()
        if "sliding_attention" in self.layer_types:
            window = self.sliding_window
            require(window is not None and window >= 1, f"sliding_window is {window}", "1 or more")
        require(self.num_shared_experts >= 0, f"num_shared_experts is {self.num_shared_experts}", "0 or more")
        require(
            self.hidden_act in ACTIVATIONS,
            f"hidden_act is {shown(self.hidden_act)}",
            f"one of {', '.join(ACTIVATIONS)}",
        )
        scores = ("sigmoid", "softmax")
        require(self.score_func in scores, f"score_func is {shown(self.score_func)}", f"one of {', '.join(scores)}")
        require(self.rms_norm_eps >= 0, f"rms_norm_eps is {self.rms_norm_eps}", "0 or more")

    def is_float32(self, name: str) -> bool:
        """The same; the norm of a sum of experts too, which is in float32: the weight would be cast at each step."""
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if rest == "post_mlp_layernorm.weight":
            return layer.isdecimal() and int(layer) >= self.num_dense_layers
        return super().is_float32(name)


class Attention(nn.Module):
    """Grouped-query attention with normalized queries and keys and a sigmoid gate on its output.

    Fused, `qkvg_proj` stands for all four projections, and `qk_norm` for both norms.
    """

    def __init__(self, config: AfmoeConfig, rope: Rope, *, is_sliding: bool) -> None:
        super().__init__()
        self._rope = rope
        self.head_dim = config.head_dim
        self.window = config.sliding_window if is_sliding else None
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_size = config.num_attention_heads * config.head_dim
        self.kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(hidden, self.q_size, bias=bias)
        self.k_proj = Linear(hidden, self.kv_size, bias=bias)
        self.v_proj = Linear(hidden, self.kv_size, bias=bias)
        self.o_proj = Linear(self.q_size, hidden, bias=bias)
        self.gate_proj = Linear(hidden, self.q_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def project(self, x: mx.array, place: Place) -> tuple[mx.array, ...]:
        """(B, L, D), or (B, D) of one token -> queries, keys and values (B, heads, L, head_dim), and the gate's logits,
        (B, L, H · head_dim) or (B, H · head_dim)."""
        if "qkvg_proj" in self:
            heads = self.q_size + self.kv_size
            qk, v, gate = mx.split(self.qkvg_proj(x), [heads, heads + self.kv_size], axis=-1)
            qk = self._rotate(self.qk_norm(split_heads(qk, self.head_dim)), place)
            q, k = mx.split(qk, [self.q_size // self.head_dim], axis=1)
        else:
            q, k, v, gate = self.q_proj(x), self.k_proj(x), self.v_proj(x), self.gate_proj(x)
            q = self._rotate(self.q_norm(split_heads(q, self.head_dim)), place)
            k = self._rotate(self.k_norm(split_heads(k, self.head_dim)), place)
        return q, k, split_heads(v, self.head_dim), gate

    def _rotate(self, x: mx.array, place: Place) -> mx.array:
        return x if self.window is None else self._rope(x, place)

    def output(self, y: mx.array, gate: mx.array) -> mx.array:
        """Attended values (B, H, L, head_dim), gated, -> (B, L, D), or (B, D) by a gate (B, H · head_dim)."""
        return self.o_proj(merge_heads(y, gate.ndim) * mx.sigmoid(gate))


class Router(nn.Module):
    def __init__(self, config: AfmoeConfig) -> None:
        super().__init__()
        self.gate = Linear(config.hidden_size, config.num_experts, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.gate(x)


class SparseMoe(nn.Module):
    """Experts of a router's choice, plus shared ones.

    Fused, the shared ones stand behind the others in `experts`, with rows of the router of their own that always win.
    """

    ROUTED = "experts"

    def __init__(self, config: AfmoeConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.router = Router(config)
        self.expert_bias = mx.zeros((config.num_experts,))
        chosen = config.num_experts_per_tok
        self.experts = Experts(config.num_experts, hidden, width, chosen=chosen, hidden_act=config.hidden_act)
        self.shared_in_experts = 0
        if config.num_shared_experts:
            self.shared_experts = MLP(hidden, width * config.num_shared_experts, config.hidden_act)

    def __call__(self, x: mx.array, trace: Trace | None) -> mx.array:
        """(..., D) -> the same in float32, as the experts' outputs are summed."""
        logits = self.router(x)
        weights, experts = self.route(logits)
        if trace is not None:
            self._write_down(logits, trace)
        return self.combine(x, experts, weights)

    def choose(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(..., D) -> the experts (..., k) that `combine` takes, and their weights."""
        weights, experts = self.route(self.router(x))
        return experts, weights

    def combine(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """What experts (..., k), with these weights, and the shared ones make of x (..., D): the same in float32."""
        if "shared_experts" in self and isinstance(self.experts, StreamedExperts):
            mx.async_eval(experts, weights)  # first, for the host waits for them
            shared = self.shared_experts(x)
            mx.async_eval(shared)  # while experts are read
            return self.experts(x, experts, weights) + shared
        return self.with_shared(x, self.experts(x, experts, weights))

    def with_shared(self, x: mx.array, y: mx.array) -> mx.array:
        """What the routed experts made of x, and the shared ones that are apart."""
        return y + self.shared_experts(x) if "shared_experts" in self else y

    def route(self, logits: mx.array, shared: int | None = None) -> tuple[mx.array, mx.array]:
        """Router logits (..., E + shared) -> weights and experts (..., k + shared)."""
        config = self.config
        shared = self.shared_in_experts if shared is None else shared
        return route(
            logits,
            self.expert_bias[: config.num_experts + shared],
            k=config.num_experts_per_tok,
            shared=shared,
            score_func=config.score_func,
            normalize=config.route_norm and config.score_func == "sigmoid",
            eps=1e-20,
            scale=config.route_scale,
        )

    def _write_down(self, logits: mx.array, trace: Trace) -> None:
        experts = self.config.num_experts
        routed = logits[..., :experts].reshape(-1, experts)
        trace.add("router_logits", routed.astype(mx.float32))
        trace.add("selected_experts", self.route(routed, shared=0)[1])


class DecoderLayer(nn.Module):
    """A layer in three steps: `project`, `attend`, which alone knows the cache, and `finish`.

    A single token of each row may be (B, D) throughout.
    """

    def __init__(self, config: AfmoeConfig, rope: Rope, layer_idx: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, rope, is_sliding=config.layer_types[layer_idx] == "sliding_attention")
        is_dense = layer_idx < config.num_dense_layers
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act) if is_dense else SparseMoe(config)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.pre_mlp_layernorm = RMSNorm(hidden, eps)
        self.post_mlp_layernorm = RMSNorm(hidden, eps)

    def project(self, h: mx.array, place: Place, valid: mx.array | None = None) -> tuple[mx.array, ...]:
        """(B, L, D) -> what `attend` takes."""
        return self.self_attn.project(self.input_layernorm(h), place)

    def attend(
        self, projected: tuple[mx.array, ...], chunk: Chunk | RowStep, cache: KVCache | None, trace: Trace | None = None
    ) -> tuple[mx.array, ...]:
        """What these tokens gather from those before them, for `finish`."""
        q, k, v, gate = projected
        if cache is not None:
            k, v = cache.update(k, v)
        return chunk.attend(q, k, v, window=self.self_attn.window, trace=trace), gate

    def finish(self, h: mx.array, attended: tuple[mx.array, ...], trace: Trace | None = None) -> mx.array:
        """The layer's output (B, L, D)."""
        h, r = self.before_mlp(h, attended)
        return self.after_mlp(h, self.mlp(r, trace) if isinstance(self.mlp, SparseMoe) else self.mlp(r))

    def before_mlp(self, h: mx.array, attended: tuple[mx.array, ...]) -> tuple[mx.array, mx.array]:
        """The residual stream (B, L, D) after attention, and what the MLP takes of it."""
        h = h + self.post_attention_layernorm(self.self_attn.output(*attended))
        return h, self.pre_mlp_layernorm(h)

    def after_mlp(self, h: mx.array, y: mx.array) -> mx.array:
        """The layer's output (B, L, D), y being the MLP's."""
        return h + self.post_mlp_layernorm(y).astype(h.dtype)

    @property
    def sparse(self) -> SparseMoe | None:
        """The mixture of experts; None in a dense layer."""
        return self.mlp if isinstance(self.mlp, SparseMoe) else None


class AfmoeModel(Backbone):
    def __init__(self, config: AfmoeConfig, rope: Rope) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config, rope, i) for i in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class AfmoeForCausalLM(CausalLM):
    """The whole model; see `CausalLM.__call__` for its inputs."""

    config: AfmoeConfig
    takes_rows = True

    def __init__(self, config: AfmoeConfig) -> None:
        rope = Rope(config.head_dim, config.rope)
        super().__init__(config, AfmoeModel(config, rope), rope)

    def scale_embeddings(self, h: mx.array) -> mx.array:
        return h * self.config.hidden_size**0.5 if self.config.mup_enabled else h

    def final_norm(self, h: mx.array) -> mx.array:
        return self.model.norm(h)

    def layer_cache(self, kind: str, slack: int, kv_quantization: KVQuantization | None) -> KVCache:
        if kind == "full_attention":
            return self.full_cache(kv_quantization)
        assert self.config.sliding_window is not None
        return RotatingKVCache(self.config.sliding_window - 1, slack)
