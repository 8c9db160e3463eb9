"""`--hosts`: what is said of who holds what."""

from ..models import CausalLM
from ..terminal import note


def tell_hosts(model: CausalLM) -> None:
    """Say which host has which layers of a model that is on several."""
    if model.beyond is not None:
        shares = ", ".join(f"{name} {len(part)}" for name, part in model.beyond.parts)
        note(f"Layers: {shares}, of {model.config.num_hidden_layers}", dim=True)
