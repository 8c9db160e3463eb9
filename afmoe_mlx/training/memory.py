"""The memory that a training takes, from the shapes of a model alone."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..models import CausalLM
from .loss import PIECE
from .optimizers import OptimizerName
from .targets import maps_of, sizes

# Arrays of the size of what is trained: it, its gradients, those an optimizer keeps, and what an update makes anew.
COPIES = {"sgd": 3, "muon": 4, "adafactor": 4, "adam": 5, "adamw": 5}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes. weights: of the model as it is; trained: parameters with all that goes with them; activations: what is
    kept of a batch until its gradients are taken; loss: logits and what is made of them."""

    weights: int
    trained: int
    activations: int
    loss: int

    @property
    def peak(self) -> int:
        return self.weights + self.trained + max(self.activations, self.loss)


def training_memory(
    model: CausalLM, weights: int, rows: int, columns: int, optimizer: OptimizerName, *, accumulates: bool
) -> TrainingMemory:
    """Of a model of so many bytes on which training was begun, and batches (rows, columns). Nothing is evaluated."""
    learned = trained_bytes(model)
    is_model_itself = not any(map(is_added, learned))  # whose weights are counted already
    trained = sum(learned.values()) * (COPIES[optimizer] + accumulates - is_model_itself)
    of_layers = [kept_of(layer, model, rows * columns) for layer in model.layers]
    # scores are computed again for their gradients, by MLX itself: one layer's are there, and what is made of them
    scores = 4 * rows * model.config.num_attention_heads * columns**2 * mx.float32.size
    positions = rows * columns
    if model.recomputes:  # a layer's input alone, and one layer's activations with their gradients
        kept = positions * model.config.hidden_size * model.dtype.size * len(of_layers)
        activations = kept + 3 * max(of_layers) + scores
    else:
        kept = sum(of_layers)
        activations = kept + max(of_layers) + scores
    logits = min(positions, max(PIECE // model.config.vocab_size, 1)) * model.config.vocab_size * mx.float32.size
    return TrainingMemory(weights, trained, activations, kept + 3 * logits)


def trained_bytes(model: CausalLM) -> dict[str, int]:
    """What each trained parameter takes: an adapter's are in float32, the model's own in its dtype."""
    found = dict(tree_flatten(model.trainable_parameters()))
    return {name: array.size * (4 if is_added(name) else model.dtype.size) for name, array in found.items()}


def is_added(name: str) -> bool:
    """Whether a parameter is an adapter's, which the model's own weights stand beside."""
    return name.rpartition(".")[2] in ("lora_a", "lora_b", "m")


def kept_of(layer: nn.Module, model: CausalLM, tokens: int) -> int:
    """Bytes of a layer's activations of so many tokens until its gradients are taken."""
    config = model.config
    numbers = 0.0
    for name, module in maps_of(layer):
        _, inputs, outputs = sizes(module)
        takes = config.num_experts_per_tok if is_of_routed(name) else 1
        # its output, and what is made of that before the next; of experts the inputs too, in their own order
        numbers += takes * (2 * outputs + (inputs if takes > 1 else 0))
    numbers += 4 * config.hidden_size  # norms and the residual stream
    return round(tokens * numbers) * model.dtype.size


def is_of_routed(name: str) -> bool:
    """Whether a map's name is of the routed experts."""
    return name.startswith(("mlp.experts.", "feed_forward.switch_mlp."))
