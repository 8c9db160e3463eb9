"""`Trace`: hidden states, router logits, chosen experts and attention weights of a forward pass, collected."""

from dataclasses import dataclass, field

import mlx.core as mx


@dataclass
class Trace:
    """Collects what a forward pass computes on its way. Pass one as `trace=`; each call appends to it.

    The lists hold what Transformers' `output_hidden_states`, `output_router_logits` and `output_attentions` give. Rows
    of a padded chunk that goes into a cache stand aligned at the right here.
    """

    hidden_states: list[mx.array] = field(default_factory=list)
    """(B, L, D) each: the embeddings, every layer's output but the last one's, the final norm's output."""
    router_logits: list[mx.array] = field(default_factory=list)
    """(B·L, E) float32, one a mixture-of-experts layer."""
    selected_experts: list[mx.array] = field(default_factory=list)
    """(B·L, k) integers, one a mixture-of-experts layer, in no particular order."""
    attentions: list[mx.array] = field(default_factory=list)
    """(B, H, L, K), one an attention layer; K keys, for a sliding layer with a cache those it can still see."""
