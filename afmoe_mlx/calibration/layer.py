"""Calibration of one decoder layer: each linear map is quantized for the inputs that the stored ones before it give."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..conversion.encoder import join
from ..conversion.stored import StoredWeights
from ..models.chunk import Chunk
from ..models.layers import MLP
from ..models.rope import Rope
from .experts import calibrating
from .gated import GatedMaps
from .quantizer import Quantizer
from .statistics import Inputs

Stored = Iterator[tuple[str, mx.array]]

# What a token counts for an expert that it is not routed to, as a share of what it counts for those that it is, for as
# many tokens as channels: the more there are, the less an expert has to learn from others' tokens.
UNROUTED = 3.0

# Maps of a layer's first half that share their inputs, in the order of the computation.
MIXERS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.gate_proj"),
    ("self_attn.o_proj",),
    ("self_attn.out_proj",),
    ("conv.in_proj",),
    ("conv.out_proj",),
)


def run_layer(layer: Any, h: mx.array, rope: Rope) -> mx.array:
    """What a decoder layer makes of the beginning of some rows, (B, L, D)."""
    chunk = Chunk(h.shape[0], h.shape[1], rope)
    return layer.finish(h, layer.attend(layer.project(h, chunk.place, None), chunk, None, None), None)


class LayerCalibration:
    """A decoder layer in the form that it is stored in, filled map by map."""

    def __init__(
        self, path: str, layer: nn.Module, rope: Rope, quantizer: Quantizer, *, width: int, all_experts: bool
    ) -> None:
        """path: such as "model.layers.3". layer: unfused, its weights unread; it is changed. width: of its inputs."""
        self._path, self._layer, self._rope = path, layer, rope
        self._quantizer = quantizer
        self._all_experts = all_experts
        self._unrouted = min(UNROUTED * width / quantizer.tokens, 1.0)
        self._parts: dict[str, list[mx.array]] = {}
        nn.quantize(layer, class_predicate=lambda name, _: quantizer.format(join(path, name)) or False)
        layer.eval()

    def encode(self, weights: StoredWeights, batches: Sequence[mx.array]) -> Stored:
        """What is stored for the layer's weights, with its inputs (B, L, D) on the calibration text."""
        yield from self._plain(weights)
        for site in MIXERS:
            yield from self._mixer([name for name in site if self._calibrates(name)], weights, batches)
        name = "mlp" if "mlp" in self._layer else "feed_forward"
        block = self._layer[name]
        if isinstance(block, MLP):
            yield from self._gated([name], weights, batches)
            return
        experts = f"{name}.experts" if "experts" in block else f"{name}.switch_mlp"
        shared = [f"{name}.shared_experts"] if "shared_experts" in block else []
        yield from self._gated([experts, *shared], weights, batches)

    def outputs(self, batches: Sequence[mx.array]) -> list[mx.array]:
        """The layer's outputs (B, L, D), once all is stored, as what is stored gives them."""
        made = []
        for batch in batches:
            made.append(self._run(batch))
            mx.eval(made[-1])
        return made

    def _calibrates(self, name: str) -> bool:
        return self._quantizer.calibrates(join(self._path, name))

    def _plain(self, weights: StoredWeights) -> Stored:
        """All that is not calibrated: norms, the router, and what a recipe keeps or stores in another mode."""
        owners = {name: name.rpartition(".")[0] for name in weights}
        others = [name for name, path in owners.items() if not self._quantizer.calibrates(path)]
        for name, array in self._quantizer.plain.encode(0, weights.only(others)):
            yield self._keep(name, array)
        for name in weights:
            if name not in others and not name.endswith(".weight"):  # the bias of a calibrated map
                yield self._keep(name, self._quantizer.plain.cast("bias", weights[name]))
        self._settle()

    def _mixer(self, names: Sequence[str], weights: StoredWeights, batches: Sequence[mx.array]) -> Stored:
        """Maps that share their inputs."""
        if not names:
            return
        width = weights.shape(f"{self._path}.{names[0]}.weight")[-1]
        pieces = (x for x, _ in self._inputs(names[0], batches))
        measured = self._quantizer.measured([self._quantizer.moments_of(pieces, width)])
        for name in names:
            path = join(self._path, name)
            quantized = self._quantizer.quantize(path, weights[join(path, "weight")][None], measured)
            for kind in ("weight", "scales", "biases"):
                yield self._keep(join(path, kind), getattr(quantized, kind)[0])
        self._settle()

    def _gated(self, names: Sequence[str], weights: StoredWeights, batches: Sequence[mx.array]) -> Stored:
        """Gated MLPs that share their inputs."""
        seen = list(self._inputs(f"{names[0]}.gate_proj", batches))
        x = mx.concatenate([x for x, _ in seen])
        counted = [counts for _, counts in seen if counts is not None]
        del seen
        for name in names:
            counts = mx.concatenate(counted) if counted and name == names[0] else None
            maps = GatedMaps(join(self._path, name), self._module(name), self._quantizer, weights)
            for stored, array in maps.encode(x, counts):
                yield self._keep(stored, array)
        self._settle()

    def _inputs(self, name: str, batches: Sequence[mx.array]) -> Iterator[tuple[mx.array, mx.array | None]]:
        """The inputs (N, in) of a map, batch by batch, and what they count (N, E) for each expert."""
        inputs = Inputs(name)
        for batch in batches:
            with calibrating(self._layer, self._all_experts, inputs, unrouted=self._unrouted):
                self._run(batch)  # as far as to these inputs: nothing else is evaluated
            x, counts = inputs.take()
            mx.eval(x, [] if counts is None else counts)
            yield x, counts

    def _run(self, h: mx.array) -> mx.array:
        return run_layer(self._layer, h, self._rope)

    def _module(self, path: str) -> Any:
        module: Any = self._layer
        for name in path.split("."):
            module = module[name]
        return module

    def _keep(self, name: str, array: mx.array) -> tuple[str, mx.array]:
        """Remember a tensor, or the next slice of one, for the layer's own computation."""
        self._parts.setdefault(name, []).append(array)
        return name, array

    def _settle(self) -> None:
        """Give the layer the tensors that were kept."""
        for name in list(self._parts):
            parts = self._parts.pop(name)
            array = parts[0] if len(parts) == 1 else mx.concatenate(parts)
            path, _, kind = name.removeprefix(f"{self._path}.").rpartition(".")
            module = self._module(path) if path else self._layer
            is_stack = kind == "weight" and array.ndim == 3 and "conv" not in path  # experts are cast one at a time
            if mx.issubdtype(array.dtype, mx.floating) and not is_stack:
                array = array.astype(mx.float32)
            mx.eval(array)
            module[kind] = array
