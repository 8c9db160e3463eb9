"""The calibration text on its way through the layers: its hidden states, in files, one a layer."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..durable import sync_file
from ..errors import ConversionError

# Hidden states of earlier layers are kept while all take no more than this, beside those of the last KEPT_LAYERS: an
# interrupted conversion goes back to the first layer that is not safe on disk.
KEPT_BYTES = 1 << 30
KEPT_LAYERS = 3


class Activations:
    """The inputs (B, L, D) float32 of every decoder layer, as batches of rows of one length."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, index: int, batches: Sequence[mx.array]) -> None:
        """Keep the inputs of decoder layer `index`, and drop those that no restart can need."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(index)
        beside = path.with_suffix(".partial.safetensors")
        try:
            mx.save_safetensors(str(beside), {f"{i:06}": batch for i, batch in enumerate(batches)})
        except RuntimeError as problem:
            needed = sum(batch.nbytes for batch in batches)
            raise ConversionError(f"{path}: cannot be written ({problem}): it takes {needed / 1e9:.1f} GB") from None
        sync_file(beside)
        beside.replace(path)
        self._trim(index)

    def read(self, index: int) -> list[mx.array]:
        """The inputs of decoder layer `index`, each read when it is evaluated; ConversionError if they are gone."""
        path = self._path(index)
        if not path.is_file():
            found = f"{path}: is gone, and with it what layer {index} is calibrated with"
            raise ConversionError(f"{found}: pass --overwrite to start anew")
        arrays: dict[str, mx.array] = mx.load(str(path))  # type: ignore[assignment]
        return [arrays[name] for name in sorted(arrays)]

    def _path(self, index: int) -> Path:
        return self._folder / f"layer-{index:05}.safetensors"

    def _trim(self, newest: int) -> None:
        total = 0
        for path in self._newest_first():
            total += path.stat().st_size
            if total > KEPT_BYTES and path < self._path(max(newest - KEPT_LAYERS + 1, 0)):
                path.unlink()

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob("layer-?????.safetensors"), reverse=True)
