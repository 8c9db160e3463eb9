"""A part of a model holds and reads what is its own, and nothing else."""

import gc
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint import load_model
from afmoe_mlx.checkpoint.random import save_random
from helpers.tiny import BASES, tiny_folder


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


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="bytes read are counted on Linux")
@pytest.mark.parametrize("bits", [None, 4])
def test_a_part_takes_its_share_and_a_layer_and_reads_its_share(tmp_path: Path, bits: int | None) -> None:
    config = BASES["afmoe"] | {"hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 8}
    folder = save_random(tmp_path / "model", {"model_type": "afmoe"} | config | {"layer_types": None}, bits=bits)
    for part in (range(2), range(2, 5), range(5, 8)):
        gc.collect()
        mx.reset_peak_memory()
        held, read = mx.get_active_memory(), bytes_read()
        model, _ = load_model(folder, part=part)
        share = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
        layer = sum(array.nbytes for _, array in tree_flatten(model.layers[-1].parameters()))
        assert mx.get_peak_memory() - held <= share + layer + 100_000
        # what is stored is no wider than what is held; headers and config are read beside it
        assert bytes_read() - read <= share + 300_000


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
