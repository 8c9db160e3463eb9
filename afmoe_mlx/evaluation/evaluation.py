"""`Evaluation`: perplexity, bits per weight, and against a reference KL divergence, agreement and weight errors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's figures on a text, and against a reference where there is one; shares are between 0 and 1.

    What needs a reference is None without one. Divergences are in nats.
    """

    model: str
    reference: str | None
    text: str
    sequences: int
    """Pieces of the text, each run on its own."""
    tokens: int
    """That were predicted: all but the first of each sequence."""
    perplexity: float
    """exp of the mean negative log-likelihood of a predicted token, in nats."""
    reference_perplexity: float | None = None
    kl_mean: float | None = None
    """KL(reference ‖ model) of the next token's distribution, over the predicted tokens."""
    kl_median: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None
    """Share of the predicted tokens for which both find the same token likeliest."""
    expert_overlap: float | None = None
    """Share of the experts that the reference chooses which the model chooses too, over layers and tokens."""
    expert_overlap_by_layer: Mapping[int, float] | None = None
    """By decoder layer; those without routed experts have none."""
    weight_errors: Mapping[str, float] | None = None
    """‖W - Ŵ‖ / ‖W‖ over all matrices of a class: W the reference's, Ŵ what the model's stand for."""
    bits_per_weight: float
    """Of all tensors stored, for each weight of the model unquantized."""
    reference_bits_per_weight: float | None = None
    divergences: tuple[float, ...] = field(default=(), repr=False)
    """KL of each predicted token, in order; not in the JSON."""

    def to_json(self) -> dict[str, Any]:
        """Every figure under its name, but for the single divergences."""
        names = (entry.name for entry in fields(self) if entry.name != "divergences")
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the sorted `values` lies, interpolated between neighbours as NumPy does."""
    position = share * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])
