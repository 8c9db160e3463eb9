"""`CalibratedEncoder`: the encoder of a conversion that chooses quantized weights by a text."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..conversion.encoder import PlainEncoder, join
from ..conversion.recipe import Format
from ..conversion.stored import StoredWeights
from ..errors import ConversionError
from ..models import ModelConfig, make_model
from ..tokenizer import Tokenizer
from .activations import Activations, most_bytes
from .calibration import Calibration
from .layer import LayerCalibration, Stored
from .quantizer import Measured, Quantizer
from .statistics import Moments
from .text import batches, read_rows

# Weights of the embeddings or the head that are quantized at a time.
PIECE = 1 << 22

EMBEDDINGS, HEAD = "model.embed_tokens", "lm_head"
QUANTIZED_PARTS = ("weight", "scales", "biases")

# What errors of tied embeddings count where they are the first layer's input, the same in all directions, as a share of
# what they count in the mean where they are the head.
EMBEDDED = 0.5


class CalibratedEncoder:
    """An `Encoder` that carries a text through the layers: what each receives comes from those before as stored.

    The text's hidden states wait in files, so that a conversion goes on at the layer where it was stopped.
    """

    def __init__(
        self,
        calibration: Calibration,
        config: ModelConfig,
        tokenizer: Tokenizer,
        formats: Mapping[str, Format | None],
        work_folder: Path,
        *,
        plain: PlainEncoder | None = None,
    ) -> None:
        """formats: of modules by path. work_folder: for the hidden states. plain: stores what is not calibrated.

        Raises ConversionError if no format is affine, InputError for a text that cannot be read.
        """
        self._calibration = calibration
        self._model = make_model(config)  # no weight of it is ever made
        self._model.eval()
        rows = read_rows(calibration, tokenizer)
        plain = plain or PlainEncoder(formats)
        self._quantizer = Quantizer(calibration.method, formats, plain, tokens=sum(map(len, rows)))
        if not any(self._quantizer.calibrates(path) for path in formats):
            modes = ", ".join(sorted({chosen["mode"] for chosen in formats.values() if chosen})) or "nothing"
            raise ConversionError(f"calibrate with {modes} to quantize: expected a recipe of affine bits, such as 4bit")
        if max(max(row) for row in rows) >= config.vocab_size:
            raise ConversionError("the tokenizer has more tokens than the model: it is of another model")
        self._batches = batches(rows)
        self._activations = Activations(work_folder)

    @property
    def identity(self) -> str:
        """Of the method, and of the tokens that the text gives."""
        chosen = self._calibration
        digest = hashlib.sha256(json.dumps(self._batches).encode()).hexdigest()
        experts = "all" if chosen.all_experts else "routed"
        return f"{chosen.method}, {experts} experts, tokens {digest}"

    @property
    def tokens(self) -> int:
        """Of the text, that are used."""
        return self._quantizer.tokens

    @property
    def batches(self) -> list[list[list[int]]]:
        """The text, as rows of one length together."""
        return self._batches

    @property
    def scratch_bytes(self) -> int:
        """As `Encoder.scratch_bytes`: those of the hidden states."""
        return most_bytes([(len(rows), len(rows[0])) for rows in self._batches], self._model.config.hidden_size)

    def start(self, group: int) -> int:
        """As `Encoder.start`: the last one whose inputs are there; those of the embeddings always are."""
        return next(i for i in range(group, -1, -1) if i == 0 or i - 1 in self._activations)

    def is_done(self, group: int, missing: set[str]) -> bool:
        """As `Encoder.is_done`."""
        return not missing

    def finish(self, folder: Path, on_step: Callable[[int, int], None]) -> Iterator[tuple[str, mx.array]]:
        """As `Encoder.finish`: nothing."""
        return iter(())

    def encode(self, index: int | None, weights: StoredWeights) -> Iterator[tuple[str, mx.array]]:
        """As `Encoder.encode`."""
        if index is not None:
            return self._layer(index, weights)
        return self._embeddings(weights) if join(EMBEDDINGS, "weight") in weights else self._head(weights)

    def _embeddings(self, weights: StoredWeights) -> Stored:
        parts: dict[str, list[mx.array]] = {}

        def carried() -> None:
            self._activations.write(0, self._embedded({name: mx.concatenate(list_) for name, list_ in parts.items()}))

        yield from then(_kept(self._stored(EMBEDDINGS, weights, None), parts), carried)

    def _embedded(self, stored: Mapping[str, mx.array]) -> list[mx.array]:
        """The inputs of the first layer."""
        chosen = self._quantizer.format(EMBEDDINGS)
        module = self._model.model.embed_tokens
        embeddings = module if chosen is None else module.to_quantized(**chosen)
        for name, array in stored.items():
            is_float = mx.issubdtype(array.dtype, mx.floating) and array.size > 0
            embeddings[name.rpartition(".")[2]] = array.astype(mx.float32) if is_float and chosen else array
        made = []
        for rows in self._batches:
            made.append(self._model.scaled(embeddings(mx.array(rows)).astype(mx.float32)))
            mx.eval(made[-1])
        return made

    def _layer(self, index: int, weights: StoredWeights) -> Stored:
        path = f"model.layers.{index}"
        inputs = self._activations.read(index)
        layer = self._model.model.layers[index]
        calibration = LayerCalibration(
            path,
            layer,
            self._model._rope,
            self._quantizer,
            width=self._model.config.hidden_size,
            all_experts=self._calibration.all_experts,
        )

        def carried() -> None:
            self._activations.write(index + 1, calibration.outputs(inputs))

        yield from then(calibration.encode(weights, inputs), carried)
        self._model.model.layers[index] = nn.Identity()

    def _head(self, weights: StoredWeights) -> Stored:
        """The final norm, and the head by what the norm makes of the last layer's outputs."""
        others = [name for name in weights if not name.startswith(f"{HEAD}.")]
        norms: dict[str, mx.array] = {}
        for name, array in self._quantizer.plain.encode(None, weights.only(others)):
            norms[name.rpartition(".")[2]] = array
            yield name, array
        if join(HEAD, "weight") not in weights:
            return
        measured = None
        if self._quantizer.calibrates(HEAD):
            measured = self._quantizer.measured([self._head_moments(norms["weight"])])
        yield from self._stored(HEAD, weights, measured)

    def tied_embeddings(self, weight: mx.array, norm: mx.array) -> dict[str, mx.array]:
        """Embeddings (vocab, D) that are the head too, quantized anew for its inputs, which `norm` (D,) makes of the
        last layer's outputs; by the last parts of the tensors' names."""
        moments = self._head_moments(norm)
        mean = mx.diagonal(moments.sum).mean()
        moments.sum = moments.sum + EMBEDDED * mean * mx.eye(weight.shape[-1])
        measured = self._quantizer.measured([moments])
        parts: dict[str, list[mx.array]] = {}
        step = max(PIECE // weight.shape[-1], 1)
        for start in range(0, weight.shape[0], step):
            quantized = self._quantizer.quantize(EMBEDDINGS, weight[None, start : start + step], measured)
            for kind in QUANTIZED_PARTS:
                parts.setdefault(kind, []).append(getattr(quantized, kind)[0])
        return {kind: mx.concatenate(arrays) for kind, arrays in parts.items()}

    def _head_moments(self, norm: mx.array) -> Moments:
        """Of what the final norm, with these weights, makes of the last layer's outputs."""
        module = self._model.model.norm if "norm" in self._model.model else self._model.model.embedding_norm
        module.weight = norm.astype(mx.float32)
        hidden = self._activations.read(len(self._model.model.layers))
        pieces = (self._model.final_norm(h).reshape(-1, h.shape[-1]) for h in hidden)
        return self._quantizer.moments_of(pieces, hidden[0].shape[-1])

    def _stored(self, path: str, weights: StoredWeights, measured: Measured) -> Stored:
        """A matrix of many rows, some of them at a time."""
        name = join(path, "weight")
        if not self._quantizer.calibrates(path):
            yield from self._quantizer.plain.encode(None, weights.only([name]))
            return
        count, width = weights.shape(name)
        step = max(PIECE // width, 1)
        for start in range(0, count, step):
            rows = weights.rows(name, slice(start, min(start + step, count)))
            quantized = self._quantizer.quantize(path, rows[None], measured)
            for kind in QUANTIZED_PARTS:
                yield join(path, kind), getattr(quantized, kind)[0]


def _kept(stored: Stored, parts: dict[str, list[mx.array]]) -> Stored:
    """The same tensors, each kept in `parts` too."""
    for name, array in stored:
        parts.setdefault(name, []).append(array)
        yield name, array


def then(stored: Stored, carry: Callable[[], None]) -> Stored:
    """The same tensors; before the last of them, `carry` is called: when all are stored, its work is done too."""
    last = None
    for item in stored:
        if last is not None:
            yield last
        last = item
    carry()
    if last is not None:
        yield last
