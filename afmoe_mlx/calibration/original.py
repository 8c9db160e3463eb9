"""`Original`: the unquantized model's way through the calibration text, which a quantized one is to learn from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..conversion.stored import Parameter, StoredWeights
from ..models import ModelConfig, make_model
from .activations import Activations, load, most_bytes, write_arrays
from .layer import run_layer

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Original:
    """Carries the text through the layers, one of which is in memory at a time.

    What remains are the hidden states after the last layer, the final norm and the head. The logits are made of these
    whenever they are asked for: they would be a hundred times as many numbers.
    """

    def __init__(self, config: ModelConfig, batches: Sequence[list[list[int]]], folder: Path) -> None:
        """batches: of the text, rows of one length. folder: for its files."""
        self._model = make_model(config)  # its weights are never made, but for those of the layer at hand
        self._model.eval()
        self._batches = batches
        self._folder = folder
        self._states = Activations(folder)
        self._head_group = 0 if config.tie_word_embeddings else config.num_hidden_layers + 1

    def __contains__(self, index: int) -> bool:
        """Whether the inputs of decoder layer `index` are there."""
        return index in self._states

    def is_done(self, group: int) -> bool:
        """Whether all is there that remains of a group: the embeddings, a layer, or what comes after all layers."""
        layers = self._model.config.num_hidden_layers
        if group == layers:
            return layers in self._states
        needed = ["head"] if group == self._head_group else []
        return all(self._path(name).is_file() for name in [*needed, *(["norm"] if group > layers else [])])

    def carry(self, index: int | None, weights: StoredWeights) -> None:
        """Go on by the weights of a group, index and weights as `Encoder.encode` is given them."""
        if EMBEDDINGS in weights:
            self._embed(weights[EMBEDDINGS])
        elif index is not None:
            self._layer(index, weights)
        else:
            self._keep("norm", {name: weights[name] for name in weights if name != HEAD})
            if HEAD in weights:
                self._keep("head", {HEAD: weights[HEAD]})

    def normed(self) -> list[mx.array]:
        """The final norm's output (B, L, D) of each batch, read and computed when it is evaluated."""
        fill(self._model, load(self._path("norm")), "")
        return [self._model.final_norm(h) for h in self._states.read(self._model.config.num_hidden_layers)]

    def head(self) -> Callable[[mx.array], mx.array]:
        """What `normed` gives (…, D) -> logits (…, vocab) float32; its weights are in memory as they are stored."""
        weight = self.head_weight()
        return lambda h: h @ weight.T.astype(mx.float32)

    def head_weight(self) -> mx.array:
        """(vocab, D), as it is stored, read when it is evaluated."""
        return load(self._path("head"))[HEAD]

    def scratch_bytes(self, parameters: Mapping[str, Parameter]) -> int:
        """Bytes of its files at the most; parameters: of the model, as it is stored."""
        width = self._model.config.hidden_size
        states = most_bytes([(len(rows), len(rows[0])) for rows in self._batches], width)
        return states + parameters[HEAD if HEAD in parameters else EMBEDDINGS].nbytes + 8 * width

    def _embed(self, embeddings: mx.array) -> None:
        if self._head_group == 0:
            self._keep("head", {HEAD: embeddings})
        made = []
        for rows in self._batches:
            made.append(self._model.scaled(embeddings[mx.array(rows)].astype(mx.float32)))
            mx.eval(made[-1])
        self._states.write(0, made)

    def _layer(self, index: int, weights: StoredWeights) -> None:
        layer = self._model.model.layers[index]
        blank = tree_flatten(layer.parameters())
        fill(layer, weights, f"model.layers.{index}.")
        made = []
        for h in self._states.read(index):
            made.append(run_layer(layer, h, self._model._rope))
            mx.eval(made[-1])
        layer.update(tree_unflatten(blank))
        self._states.write(index + 1, made)

    def _keep(self, name: str, arrays: Mapping[str, mx.array]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_arrays(self._path(name), arrays)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def fill(module: nn.Module, weights: Mapping[str, mx.array], prefix: str) -> None:
    """Give a module weights, in float32, by their names after `prefix`; stacks of experts are cast when multiplied."""
    arrays = []
    for name in weights:
        array = weights[name]
        is_stack = array.ndim == 3 and "conv" not in name
        arrays.append((name.removeprefix(prefix), array if is_stack else array.astype(mx.float32)))
    module.update(tree_unflatten(arrays))
