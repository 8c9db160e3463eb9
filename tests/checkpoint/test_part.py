"""A part of a model holds and reads what is its own, and nothing else."""

import gc
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx.checkpoint import load_model
from afmoe_mlx.checkpoint.random import save_random
from afmoe_mlx.errors import InputError
from afmoe_mlx.models import ExpertPlacement
from helpers import foreign
from helpers.checkpoints import Tensors, golden, packed, stacked, write
from helpers.experts import WIDE, wide_folder
from helpers.tiny import BASES, tiny_folder


def assert_parts_are_the_whole(folder: Path, **options: Any) -> None:
    """Every parameter of the whole is in one part, with the same bits."""
    model, config = load_model(folder, **options)
    whole = dict(tree_flatten(model.parameters()))
    seen = []
    for first, last in pairwise((0, config.num_hidden_layers // 2, config.num_hidden_layers)):
        part, _ = load_model(folder, part=range(first, last), **options)
        for name, array in tree_flatten(part.parameters()):
            if name.startswith("model.layers."):
                _, _, place, rest = name.split(".", 3)
                name = f"model.layers.{int(place) + first}.{rest}"
            seen.append(name)
            assert array.dtype == whole[name].dtype
            assert mx.array_equal(array, whole[name])
    assert sorted(seen) == sorted(whole)


@pytest.mark.parametrize("model_type", ["afmoe", "lfm2_moe"])
@pytest.mark.parametrize("fuse", [True, False])
def test_the_parts_of_a_model_are_the_whole(tmp_path: Path, model_type: str, fuse: bool) -> None:
    assert_parts_are_the_whole(tiny_folder(tmp_path, model_type), fuse=fuse)


@pytest.mark.parametrize("layout", [None, stacked, packed], ids=["an expert", "stacked", "packed"])
@pytest.mark.parametrize("name", ["afmoe-tied", "afmoe-base", "lfm2_moe-base", "lfm2_moe-untied"])
def test_in_every_layout(tmp_path: Path, name: str, layout: Callable[[Tensors], Tensors] | None) -> None:
    made = golden(name)
    assert_parts_are_the_whole(write(tmp_path / "model", made.config, made.tensors, layout=layout, shards=3))


@pytest.mark.parametrize("name", foreign.NAMES)
def test_in_every_format_of_other_quantizers(tmp_path: Path, name: str) -> None:
    foreign.write_golden(tmp_path / "model", name)
    assert_parts_are_the_whole(tmp_path / "model")


def test_with_a_head_that_is_not_the_embeddings_it_is_said_to_be(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "afmoe", tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="lm_head"):
        assert_parts_are_the_whole(folder)


@pytest.mark.parametrize("part", [range(2), range(1, 3)], ids=str)
def test_experts_of_a_part_are_read_from_its_files(tmp_path: Path, part: range) -> None:
    folder = wide_folder(tmp_path / "model", "afmoe", bits=4, group_size=32)
    whole = load_model(folder, part=part)[0]
    few = load_model(folder, part=part, place=lambda *_: ExpertPlacement(2))[0]
    h = mx.random.normal((1, 5, WIDE["hidden_size"]))
    assert [pool.slots for pool in few.expert_pools] == [2] * len([i for i in part if i])  # the first is dense
    found = [model.part_of(h, model.chunk((1, 5), model.make_cache())) for model in (whole, few)]
    assert mx.array_equal(*found)


@pytest.mark.parametrize("part", [range(0), range(2, 2), range(1, 9), range(-1, 1), range(0, 4, 2), range(3, 0, -1)])
def test_what_is_no_part_is_refused(tmp_path: Path, part: range) -> None:
    folder = tiny_folder(tmp_path, "afmoe", num_hidden_layers=4)
    with pytest.raises(InputError, match="of the model's 4"):
        load_model(folder, part=part)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="bytes read are counted on Linux")
@pytest.mark.parametrize(
    ("model_type", "stored"),
    [("afmoe", {}), ("afmoe", {"bits": 4}), ("lfm2_moe", {"bits": 4, "group_size": 32, "mode": "mxfp4"})],
    ids=str,
)
def test_a_part_takes_its_share_and_a_layer_and_reads_its_share(
    tmp_path: Path, model_type: str, stored: dict[str, Any]
) -> None:
    config = BASES[model_type] | {"hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 8}
    config["layer_types"] = None if model_type == "afmoe" else ["conv", "full_attention"] * 4
    folder = save_random(tmp_path / "model", {"model_type": model_type} | config, **stored)
    for part in (range(2), range(2, 5), range(5, 8)):
        gc.collect()
        mx.reset_peak_memory()
        held, read = mx.get_active_memory(), bytes_read()
        model, _ = load_model(folder, part=part)
        share = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
        layer = max(sum(a.nbytes for _, a in tree_flatten(layer.parameters())) for layer in model.layers)
        assert mx.get_peak_memory() - held <= share + layer + 100_000
        # what is stored is no wider than what is held; headers and config are read beside it
        assert bytes_read() - read <= share + 300_000


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
