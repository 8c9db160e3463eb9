"""A part of a model holds and reads what is its own, and nothing else."""

from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint import load_model
from helpers.tiny import tiny_folder


@pytest.mark.parametrize("model_type", ["afmoe", "lfm2_moe"])
@pytest.mark.parametrize("fuse", [True, False])
def test_the_parts_of_a_model_are_the_whole(tmp_path: Path, model_type: str, fuse: bool) -> None:
    folder = tiny_folder(tmp_path, model_type)
    whole = dict(tree_flatten(load_model(folder, fuse=fuse)[0].parameters()))
    seen = []
    for first, last in pairwise((0, 1, 2, len(load_model(folder)[0].layers))):
        part, _ = load_model(folder, fuse=fuse, part=range(first, last))
        for name, array in tree_flatten(part.parameters()):
            if name.startswith("model.layers."):
                _, _, place, rest = name.split(".", 3)
                name = f"model.layers.{int(place) + first}.{rest}"
            seen.append(name)
            assert mx.array_equal(array, whole[name])
    assert sorted(seen) == sorted(whole)
