"""A model's weight matrices, dequantized, read from disk some rows or some experts at a time."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.files import read_config_json
from ..checkpoint.foreign import translate
from ..checkpoint.load import empty_model
from ..conversion.encoder import join
from ..conversion.job import stored_config
from ..conversion.source import LocalSource
from ..conversion.stored import SourceReader, parameters_of
from ..models import CausalLM
from ..models.linear import NVFP4_LARGEST

# Weights that are held at a time, in float32, one expert aside.
PIECE = 1 << 22

KINDS = ("weight", "scales", "biases", "global_scale")


def matrix_modules(model: CausalLM) -> dict[str, nn.Module]:
    """The modules of an unfused model that hold a matrix, by path; norms hold none."""
    return {path: module for path, module in model.named_modules() if "weight" in module and module.weight.ndim > 1}


class Matrices:
    """The matrices of a model folder, by path: linear maps, stacks of experts, embeddings, convolutions."""

    def __init__(self, folder: Path) -> None:
        """No weights are read but those of a head that may be tied. Raises the errors of reading a checkpoint."""
        self._source = LocalSource(folder)
        raw = read_config_json(folder)
        with warnings.catch_warnings(action="ignore"):  # reading the config has warned of the same
            raw, self._headers = translate(raw, self._source.headers)
            config = stored_config(self._source, raw, self._headers)
            model, self._groups = empty_model(folder, raw, config, self._headers)
        self._shapes = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
        self._modules: dict[str, Any] = matrix_modules(model)

    def __contains__(self, path: str) -> bool:
        return path in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def float32_rows(self, path: str) -> Iterator[mx.array]:
        """A matrix in float32, dequantized, as pieces of its rows (n, in); experts' rows one after another.

        Models of one shape give pieces of one shape, whatever they are stored in.
        """
        module = self._modules[path]
        names = {kind: join(path, kind) for kind in KINDS if module.get(kind) is not None}
        groups = {name: self._groups[name] for name in names.values()}
        width = module.scales.shape[-1] * module.group_size if "scales" in names else module.weight.shape[-1]
        count, *rows = module.weight.shape[:-1]
        step = max(PIECE // (prod(rows) * width), 1)
        with closing(SourceReader(self._source, parameters_of(groups, self._headers, self._shapes))) as reader:
            for start in range(0, count, step):
                some = slice(start, min(start + step, count))
                parts = {kind: reader.read(name, some) for kind, name in names.items()}
                yield _float32(parts, module).reshape(-1, width)
            reader.check()


def _float32(parts: Mapping[str, mx.array], module: Any) -> mx.array:
    """What stored parts of a module stand for."""
    if "scales" not in parts:
        return parts["weight"].astype(mx.float32)
    scales, biases = parts["scales"], parts.get("biases")
    weight = mx.dequantize(
        parts["weight"],
        scales if scales.dtype == mx.uint8 else scales.astype(mx.float32),
        None if biases is None else biases.astype(mx.float32),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
        dtype=mx.float32,
    )
    if "global_scale" not in parts:
        return weight
    scale = parts["global_scale"] / NVFP4_LARGEST
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
