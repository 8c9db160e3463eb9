"""Quantizing one weight for the inputs measured, by the method that was chosen."""

from collections.abc import Iterable, Mapping, Sequence

import mlx.core as mx

from ..conversion.encoder import PlainEncoder
from ..conversion.recipe import Format
from .gptq import Curvature, quantize_gptq
from .scales import Quantized, quantize_weighted
from .statistics import PIECE, Moments

# What is known of the inputs of some maps (B, …): their curvature, or for scales the channels' mean squares.
Measured = Curvature | mx.array | None


class Quantizer:
    """Quantizes modules whose format is affine; others are left to the plain encoder."""

    def __init__(self, method: str, formats: Mapping[str, Format | None], plain: PlainEncoder, tokens: int) -> None:
        """formats: of modules by path. plain: stores the others. tokens: of the text."""
        self._is_full = method != "scales"
        self._formats = formats
        self.plain = plain
        self.tokens = tokens

    def format(self, path: str) -> Format | None:
        """What the module at `path` is stored as, None for unquantized."""
        return self._formats.get(path)

    def calibrates(self, path: str) -> bool:
        """Whether the weight of the module at `path` is chosen here."""
        chosen = self.format(path)
        return chosen is not None and chosen["mode"] == "affine"

    def moments(self, x: mx.array, counts: mx.array | None = None) -> Moments:
        """Of inputs (N, in) that count `counts` (N,), as the method needs them."""
        pieces = (x[start : start + PIECE] for start in range(0, x.shape[0], PIECE))
        return self.moments_of(pieces, x.shape[-1], counts)

    def moments_of(self, pieces: Iterable[mx.array], width: int, counts: mx.array | None = None) -> Moments:
        """As `moments`, of inputs that come in pieces (n, width)."""
        moments, start = Moments(width, is_full=self._is_full), 0
        for x in pieces:
            moments.add(x, None if counts is None else counts[start : start + x.shape[0]])
            start += x.shape[0]
        return moments

    def measured(self, moments: Sequence[Moments]) -> Measured:
        """What `quantize` takes for maps of these moments, B of them."""
        stacked = mx.stack([each.sum for each in moments])
        return Curvature.from_moments(stacked, self.tokens) if self._is_full else stacked

    def quantize(self, path: str, weight: mx.array, measured: Measured) -> Quantized:
        """Weights (B, out, in) as the source has them, of the module at `path`; None: its inputs are not known."""
        chosen = self._formats[path]
        assert chosen is not None
        dtype = self.plain.cast("weight", weight).dtype
        options = {"group_size": chosen["group_size"], "bits": chosen["bits"], "dtype": dtype}
        weight = weight.astype(mx.float32)
        if isinstance(measured, Curvature):
            return quantize_gptq(weight, measured, **options)
        return quantize_weighted(weight, measured, **options)

    def plain_weight(self, path: str, quantized: Quantized) -> mx.array:
        """The weights (B, out, in) in float32 that stored ones stand for."""
        chosen = self._formats[path]
        assert chosen is not None
        scales, biases = (array.astype(mx.float32) for array in (quantized.scales, quantized.biases))
        return mx.dequantize(quantized.weight, scales, biases, chosen["group_size"], chosen["bits"])
