"""Gated MLPs, `down(act(gate(x)) * up(x))`: a dense one, shared experts, or the stack of a layer's experts."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from ..conversion.encoder import join
from ..conversion.stored import StoredWeights
from .quantizer import Quantizer
from .scales import Quantized
from .statistics import PIECE

# Bytes of the second moments of the experts that are quantized at a time.
BLOCK_BYTES = 64 << 20

PARTS = ("gate_proj", "up_proj", "down_proj")


class GatedMaps:
    """The maps of one gated MLP, or of a stack of them, which are quantized some experts at a time."""

    def __init__(self, path: str, module: Any, quantizer: Quantizer, weights: StoredWeights) -> None:
        """path: of the MLP. module: it, with those of its weights that are not calibrated here."""
        self._module, self._quantizer, self._weights = module, quantizer, weights
        self._paths = {part: join(path, part) for part in PARTS}
        self._chosen = [part for part in PARTS if quantizer.calibrates(self._paths[part])]

    def encode(self, x: mx.array, counts: mx.array | None) -> Iterator[tuple[str, mx.array]]:
        """What is stored for inputs x (N, D), which count `counts` (N, E) for each expert; None: one MLP, all alike."""
        if not self._chosen:
            return
        columns = [None] if counts is None else list(mx.split(counts, counts.shape[-1], axis=-1))
        step = max(BLOCK_BYTES // (4 * x.shape[-1] ** 2), 1)
        for start in range(0, len(columns), step):
            block = [None if column is None else column[:, 0] for column in columns[start : start + step]]
            rows = None if counts is None else slice(start, start + len(block))
            for path, quantized in self._block(rows, x, block):
                for kind in ("weight", "scales", "biases"):
                    array = getattr(quantized, kind)
                    yield join(path, kind), array[0] if rows is None else array

    def _block(
        self, rows: slice | None, x: mx.array, columns: Sequence[mx.array | None]
    ) -> Iterator[tuple[str, Quantized]]:
        """Some experts: gate and up by the inputs, then down by what those two, as they are stored, make of them."""
        plain: dict[str, mx.array] = {}
        inputs = [part for part in PARTS[:2] if part in self._chosen]
        measured = self._quantizer.measured([self._quantizer.moments(x, column) for column in columns])
        for part in inputs:
            path = self._paths[part]
            quantized = self._quantizer.quantize(path, self._stored(path, rows), measured)
            plain[part] = self._quantizer.plain_weight(path, quantized)
            yield path, quantized
        if "down_proj" not in self._chosen:
            return
        gate, up = (plain[part] if part in plain else self._kept(part, rows) for part in PARTS[:2])
        moments = []
        for column, g, u in zip(columns, gate, up, strict=True):
            moments.append(self._quantizer.moments_of(self._hidden(x, g, u), g.shape[0], column))
        path = self._paths["down_proj"]
        yield path, self._quantizer.quantize(path, self._stored(path, rows), self._quantizer.measured(moments))

    def _hidden(self, x: mx.array, gate: mx.array, up: mx.array) -> Iterator[mx.array]:
        """act(gate(x)) * up(x), (N, m), some tokens at a time."""
        for start in range(0, x.shape[0], PIECE):
            piece = x[start : start + PIECE]
            yield self._module._gated(piece @ gate.T, piece @ up.T)

    def _stored(self, path: str, rows: slice | None) -> mx.array:
        name = join(path, "weight")
        return self._weights[name][None] if rows is None else self._weights.rows(name, rows)

    def _kept(self, part: str, rows: slice | None) -> mx.array:
        """The plain weights (B, out, in) of a map that is not calibrated."""
        module = self._module[part]
        arrays = {kind: module[kind] for kind in ("weight", "scales", "biases") if module.get(kind) is not None}
        arrays = {kind: array[None] if rows is None else array[rows] for kind, array in arrays.items()}
        if "scales" not in arrays:
            return arrays["weight"].astype(mx.float32)
        packed, scales, biases = arrays["weight"], arrays["scales"], arrays.get("biases")
        size, bits, mode = module.group_size, module.bits, module.mode
        return mx.dequantize(packed, scales, biases, size, bits, mode, dtype=mx.float32)
