"""The error of every weight, as of whole matrices, one expert in memory at a time."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import device
from afmoe_mlx.checkpoint import open_model
from afmoe_mlx.checkpoint.save import save_weights
from afmoe_mlx.conversion.stored import SourceReader
from afmoe_mlx.evaluation import matrices, weight_error
from afmoe_mlx.evaluation.matrices import Matrices
from afmoe_mlx.evaluation.weight_error import CLASSES, weight_errors
from afmoe_mlx.models import CausalLM
from helpers.checkpoints import packed, stacked, write
from helpers.pairs import quantized_folder
from helpers.tiny import BASES, tiny, tiny_folder

SHAPES = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}

FORMATS = [{"bits": bits, "group_size": 32, "mode": "affine"} for bits in (2, 3, 5, 8)] + [
    {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    {"bits": 4, "group_size": 16, "mode": "nvfp4"},
    {"bits": 8, "group_size": 32, "mode": "mxfp8"},
]


# Formats are read alike in both architectures, and in pieces of any size.
@pytest.mark.parametrize(
    ("model_type", "parameters", "piece"),
    [
        *(("afmoe", parameters, 11 * 64) for parameters in FORMATS),
        ("afmoe", FORMATS[0], 1 << 22),
        *(("lfm2_moe", parameters, 11 * 64) for parameters in FORMATS[-2:]),
    ],
    ids=lambda value: f"{value['mode']}{value['bits']}" if isinstance(value, dict) else str(value),
)
def test_weight_errors_are_those_of_whole_matrices(
    tmp_path: Path, model_type: str, parameters: dict[str, Any], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrices, "PIECE", piece)
    folders = tiny_folder(tmp_path / "a", model_type, **SHAPES), tmp_path / "b"
    quantized_folder(folders[1], model_type, parameters, **SHAPES)
    plain, model = (open_model(folder) for folder in folders)
    sums: dict[str, np.ndarray] = {}
    for path, module in matrices.matrix_modules(model).items():
        w = np.array(plain_weight(plain, path))
        w_hat = w
        if "scales" in module:
            options = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            w_hat = np.array(
                mx.dequantize(module.weight, module.scales, module.get("biases"), **options).astype(mx.float32)
            )
        squares = np.array([np.square(w - w_hat, dtype=np.float64).sum(), np.square(w, dtype=np.float64).sum()])
        sums[weight_error.kind_of(path)] = sums.get(weight_error.kind_of(path), 0) + squares
    ticks: list[None] = []
    found = weight_errors(Matrices(folders[1]), Matrices(folders[0]), lambda: ticks.append(None))
    assert found == pytest.approx({kind: np.sqrt(s[0] / s[1]) for kind, s in sums.items()}, rel=1e-5, abs=1e-9)
    assert found["router"] == 0 < found["experts"]
    assert len(ticks) == len(Matrices(folders[1]))
    assert set(Matrices(folders[1])) == set(matrices.matrix_modules(model))


def plain_weight(model: CausalLM, path: str) -> mx.array:
    return dict(model.named_modules())[path].weight


def test_experts_with_a_further_scale_are_compared_with_it(tmp_path: Path) -> None:
    plain = tiny_folder(tmp_path / "a", **SHAPES)
    folder = shutil.copytree(plain, tmp_path / "b")
    model = open_model(plain)
    experts = model.model.layers[1].mlp.experts
    experts.up_proj = experts.up_proj.to_quantized(16, 4, "nvfp4", global_scale=True)
    save_weights(folder, dict(tree_flatten(model.parameters())))
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"bits": 4, "group_size": 16, "mode": "nvfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    assert 0 < weight_errors(Matrices(folder), Matrices(plain), lambda: None)["experts"] < 0.1


@pytest.mark.parametrize("layout", [None, packed, stacked], ids=["per expert", "packed", "stacked"])
def test_an_expert_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any) -> None:
    """Of a stack of them that is larger than all else, in every layout it is stored in."""
    piece = 64 * 64
    monkeypatch.setattr(matrices, "PIECE", piece)
    shape = {"num_hidden_layers": 2, "num_experts": 256, "hidden_size": 64, "moe_intermediate_size": 64}
    shape |= {"layer_types": ["sliding_attention", "full_attention"], "num_dense_layers": 1}
    model = tiny(**shape)
    weights = {name: np.array(array) for name, array in dict(tree_flatten(model.parameters())).items()}
    config = {"model_type": "afmoe"} | BASES["afmoe"] | shape
    reference = write(tmp_path / "a", config, per_expert(weights), layout=layout)
    other = write(tmp_path / "b", config, per_expert({n: w + 0.01 for n, w in weights.items()}), layout=stacked)
    stack = weights["model.layers.1.mlp.experts.up_proj.weight"].nbytes
    del model, weights
    read, largest = SourceReader.read, 0

    def noted(self: SourceReader, name: str, rows: slice | None = None) -> mx.array:
        nonlocal largest
        array = read(self, name, rows)
        largest = max(largest, array.nbytes)
        return array

    monkeypatch.setattr(SourceReader, "read", noted)
    subjects = Matrices(other), Matrices(reference)
    gc.collect()
    held = mx.get_active_memory()
    device.reset_peak_memory()
    assert weight_errors(*subjects, lambda: None)["experts"] > 0
    assert largest <= 4 * piece
    assert device.peak_memory() - held < stack / 4


def per_expert(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stacked tensors as the Hub has them, one an expert."""
    made: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        if ".experts." in name:
            made |= {name.replace(".experts.", f".experts.{i}."): expert for i, expert in enumerate(array)}
        else:
            made[name] = array
    return made


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("afmoe", {"embeddings", "head", "router", "experts", "shared", "attention", "dense"}),
        ("lfm2_moe", {"embeddings", "router", "experts", "attention", "convolution", "dense"}),
    ],
)
def test_every_matrix_has_a_class(model_type: str, kinds: set[str]) -> None:
    model = tiny(model_type)
    paths = matrices.matrix_modules(model)
    assert {weight_error.kind_of(path) for path in paths} == kinds <= CLASSES.keys()
    named = {
        name.rpartition(".")[0] for name, array in dict(tree_flatten(model.parameters())).items() if array.ndim > 1
    }
    assert paths.keys() == named
