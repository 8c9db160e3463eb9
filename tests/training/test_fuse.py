"""A model with an adapter merged into its weights computes what the adapter beside them does."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import convert, load_model
from afmoe_mlx.training.apply import adapting
from helpers.adapters import arrays, save, targets, theirs
from helpers.converted import WIDE, config_of, stored
from helpers.tiny import ARCHITECTURES, tiny_folder, tokens

IDS = tokens(2, 12)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("source") / "model", request.param, **WIDE[request.param])


def adapter_of(folder: Path, source: Path, kind: str, *, experts: bool = True, seed: int = 0) -> Path:
    model = load_model(source, fuse=False)[0]
    if kind == "full":
        held = dict(tree_flatten(model.parameters()))
        return save(folder, {name: array * 1.1 for name, array in held.items()}, "full")
    shapes = targets(model, config_of(source)["model_type"], experts=experts and kind == "lora")
    return save(folder, arrays(shapes, dora=kind == "dora", seed=seed), kind)


def distance(a: Any, b: Any) -> float:
    return mx.abs(a(IDS) - b(IDS)).max().item()


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_merged_and_applied_are_alike(source: Path, tmp_path: Path, kind: str) -> None:
    adapter = adapter_of(tmp_path / "adapter", source, kind)
    fused = convert(source, tmp_path / "fused", quantize=False, adapter_path=adapter, adapter_scale=0.7)
    ours = load_model(fused)[0]
    assert distance(ours, load_model(source, adapt=adapting([adapter], 0.7))[0]) < 2e-5
    assert distance(ours, load_model(source)[0]) > 1e-3
    assert {a.dtype for a in stored(fused).values()} == {a.dtype for a in stored(source).values()}
    pytest.importorskip("mlx_lm")
    assert distance(ours, theirs(fused)) < 2e-5
