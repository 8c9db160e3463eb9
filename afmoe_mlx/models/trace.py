"""`Trace`: hidden states, router logits, chosen experts and attention weights of a forward pass, collected."""

from collections.abc import Collection
from dataclasses import dataclass, field

import mlx.core as mx

from ..errors import InputError
from ..values import shown

KINDS = ("hidden_states", "router_logits", "selected_experts", "attentions")


@dataclass
class Trace:
    """Collects what a forward pass computes on its way. Pass one as `trace=`; each call appends to it.

    The lists hold what Transformers' `output_hidden_states`, `output_router_logits` and `output_attentions` give. Rows
    of a padded chunk that goes into a cache stand aligned at the right here. Raises InputError for a kind there is not.
    """

    keep: Collection[str] = KINDS
    """The lists to fill, by their names. Attention weights grow with the square of the length, and without them
    attention runs through its fast kernel."""
    hidden_states: list[mx.array] = field(default_factory=list, init=False)
    """(B, L, D) each: the embeddings, every layer's output but the last one's, the final norm's output."""
    router_logits: list[mx.array] = field(default_factory=list, init=False)
    """(B·L, E) float32, one a mixture-of-experts layer."""
    selected_experts: list[mx.array] = field(default_factory=list, init=False)
    """(B·L, k) integers, one a mixture-of-experts layer, in no particular order."""
    attentions: list[mx.array] = field(default_factory=list, init=False)
    """(B, H, L, K), one an attention layer; K keys, for a sliding layer with a cache those it can still see."""

    def __post_init__(self) -> None:
        if isinstance(self.keep, str) or not all(kind in KINDS for kind in self.keep):
            raise InputError(f"keep is {shown(self.keep)}: expected some of {', '.join(KINDS)}, in a list")

    def add(self, kind: str, array: mx.array) -> None:
        """Append to a list, if it is one of those kept."""
        if kind in self.keep:
            getattr(self, kind).append(array)
