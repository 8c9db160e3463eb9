"""The calibration text's hidden states between layers, kept in files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from ..durable import sync_file
from ..errors import ConversionError

# Layers whose inputs are there at one time: of one that is not yet safe on disk, and of the next.
KEPT_LAYERS = 2
# Bytes of a file beside its numbers, for each of its batches.
ENTRY_BYTES = 256


class Activations:
    """The inputs (B, L, D) float32 of every decoder layer, as batches of rows of one length."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, index: int, batches: Sequence[mx.array]) -> None:
        """Keep the inputs of decoder layer `index`, in place of those of layers whose outputs are safe on disk."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._trim(index)
        write_arrays(self._path(index), {f"{i:06}": batch for i, batch in enumerate(batches)})

    def __contains__(self, index: int) -> bool:
        """Whether the inputs of decoder layer `index` are there."""
        return self._path(index).is_file()

    def read(self, index: int) -> list[mx.array]:
        """The inputs of decoder layer `index`, each read when it is evaluated."""
        arrays = load(self._path(index))
        return [arrays[name] for name in sorted(arrays)]

    def _path(self, index: int) -> Path:
        return self._folder / f"layer-{index:05}.safetensors"

    def _trim(self, newest: int) -> None:
        for path in self._folder.glob("layer-?????.safetensors"):
            if path < self._path(max(newest - KEPT_LAYERS + 1, 0)):
                path.unlink()


def load(path: Path) -> dict[str, mx.array]:
    """A safetensors file, each array of which is read when it is evaluated."""
    arrays: dict[str, mx.array] = mx.load(str(path))  # type: ignore[assignment]
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that is there whole or not at all, whenever the process ends.

    ConversionError if it cannot be written.
    """
    beside = path.with_suffix(".partial.safetensors")
    try:
        mx.save_safetensors(str(beside), dict(arrays), dict(metadata or {}))
    except RuntimeError as problem:
        needed = sum(array.nbytes for array in arrays.values())
        raise ConversionError(f"{path}: cannot be written ({problem}): it takes {needed / 1e9:.1f} GB") from None
    sync_file(beside)
    beside.replace(path)


def most_bytes(shapes: Sequence[tuple[int, int]], width: int) -> int:
    """Bytes of all files at one time at the most, for batches of (rows, tokens) and a hidden size of `width`."""
    tokens = sum(rows * length for rows, length in shapes)
    return KEPT_LAYERS * (tokens * width * mx.float32.size + len(shapes) * ENTRY_BYTES)
