"""Adapters merged into a model's weights, as a conversion reads these."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import mlx.core as mx

from ..checkpoint.files import ADAPTER
from ..checkpoint.layouts import layer_of
from ..conversion.encoder import QUANTIZED, dequantized, join
from ..conversion.recipe import Format, formats_in
from ..conversion.source import SourceChangedError
from ..conversion.stored import MergedParameter, Parameter
from ..models import CausalLM
from .adapter import MLX_LM, PEFT, Adapter, LowRank, read_adapter
from .apply import apply, model_type_of


class MergedAdapters:
    """`conversion.job.Adapters`: each is merged `scale` times, computed in float32, one tensor at a time."""

    def __init__(self, paths: Sequence[str | Path], scale: float = 1.0) -> None:
        self.folders = [Path(path).expanduser() for path in paths]
        self.scale = scale
        self.identity = self._digest()
        self._model_type = ""
        self._held: tuple[int | None, list[Adapter]] | None = None
        """The adapters, of whose arrays no other layer's than this one's have been read."""

    @property
    def files(self) -> Sequence[Path]:
        names = (ADAPTER, MLX_LM, PEFT)
        return [folder / name for folder in self.folders for name in names if (folder / name).is_file()]

    def _digest(self) -> str:
        """Of the scale, and of every file's name, size and time of the last change."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return hashlib.sha256(repr((self.scale, stats)).encode()).hexdigest()

    def check_unchanged(self) -> None:
        """SourceChangedError if the adapters are not what they were."""
        if self._digest() != self.identity:
            raise SourceChangedError(self.folders[0])

    def merged(self, model: CausalLM, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """As `Adapters.merged`: what fits is what fits a loaded model."""
        self._model_type = model_type_of(model)
        formats, adapters = formats_in(model), list(self._read())
        for adapter in adapters:
            apply(model, adapter, self.scale)
        changed = [join(path, "weight") for adapter in adapters for path in adapter.changes]
        found = dict(parameters)
        for name in dict.fromkeys([*changed, *(name for adapter in adapters for name in adapter.weights)]):
            path, _, kind = name.rpartition(".")
            kinds = QUANTIZED if kind == "weight" else (kind,)
            parts = {kind: found.pop(join(path, kind)) for kind in kinds if join(path, kind) in found}
            found[name] = self._parameter(name, parts, formats.get(path))
        return found

    def _parameter(self, name: str, parts: Mapping[str, Parameter], stored: Format | None) -> MergedParameter:
        """stored: the format of a weight that is quantized."""
        main = parts[name.rpartition(".")[2]]
        shape, dtype = main.shape, main.dtype
        if stored is not None:
            scales = parts["scales"]
            shape = (*shape[:-1], scales.shape[-1] * stored["group_size"])
            dtype = scales.dtype if mx.issubdtype(scales.dtype, mx.floating) else mx.bfloat16
        files = frozenset(file for part in parts.values() for file in part.files)
        merge = partial(self._merge, name, stored, dtype)
        return MergedParameter(shape, dtype, main.pieces, files, main.derived, parts=parts, merge=merge)

    def _merge(
        self, name: str, stored: Format | None, dtype: mx.Dtype, parts: Mapping[str, mx.array], rows: slice
    ) -> mx.array:
        """A slice of a parameter's first axis, from that of what is stored of it."""
        path, _, kind = name.rpartition(".")
        weight = plain(parts, stored) if kind == "weight" else parts[kind].astype(mx.float32)
        adapters = self._of_layer(layer_of(name))
        for adapter in adapters:
            if name in adapter.weights:
                weight = adapter.weights[name][rows].astype(mx.float32)
        for adapter in adapters:
            if kind == "weight" and path in adapter.changes:
                weight = _changed(weight, adapter.changes[path], self.scale, rows)
        return weight.astype(dtype)

    def _of_layer(self, layer: int | None) -> list[Adapter]:
        """The adapters, opened anew for another layer, so that the arrays of the one before are let go of."""
        if self._held is None or self._held[0] != layer:
            self._held = layer, list(self._read())
        return self._held[1]

    def _read(self) -> Iterator[Adapter]:
        return (read_adapter(folder, self._model_type) for folder in self.folders)


def plain(parts: Mapping[str, mx.array], stored: Format | None) -> mx.array:
    """The weight in float32 that a module's stored tensors stand for; stored: their format if they are quantized."""
    wide = {
        kind: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
        for kind, array in parts.items()
    }
    return wide["weight"] if stored is None else dequantized(wide, stored).astype(mx.float32)


def _changed(weight: mx.array, change: LowRank, scale: float, rows: slice) -> mx.array:
    """Rows of a weight (out, in), or of experts' (E, out, in), with a change of all."""
    if change.a.ndim == 3:
        return weight + (change.a[rows] @ (scale * change.b[rows])).swapaxes(-1, -2)
    changed = weight + (change.a @ (scale * change.b[:, rows])).T
    if change.magnitude is None:
        return changed
    return changed * (change.magnitude[rows] / mx.linalg.norm(changed, axis=1))[:, None]
