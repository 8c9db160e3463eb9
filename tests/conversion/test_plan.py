"""A conversion's output is known to the byte before it is made: names, dtypes, shapes, files and places."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from afmoe_mlx import convert, load_model
from afmoe_mlx.checkpoint.headers import read_places
from afmoe_mlx.checkpoint.layouts import Piece
from afmoe_mlx.checkpoint.quantized import SIZES
from afmoe_mlx.conversion import encoder
from afmoe_mlx.conversion.encoder import PlainEncoder
from afmoe_mlx.conversion.plan import make_plan
from afmoe_mlx.conversion.stored import Parameter, SourceReader, StoredWeights
from afmoe_mlx.errors import CheckpointError
from helpers.checkpoints import golden, packed, recast, stacked, write
from helpers.converted import FORMATS, WIDE, contents, logits, source_folder, stored  # noqa: F401 (a fixture)
from helpers.tiny import ARCHITECTURES, tiny_folder

KINDS = ("weight", "scales", "biases")
DTYPES = (mx.bfloat16, mx.float16, mx.float32)
EVERY_FORMAT = [
    {"mode": mode, "group_size": size, "bits": bits}
    for mode, (sizes, widths) in SIZES.items()
    for size in sizes
    for bits in widths
]


class Memory:
    """A reader of weights that are in memory."""

    def __init__(self, arrays: dict[str, mx.array]) -> None:
        self.arrays = arrays
        self.parameters = {
            name: Parameter(array.shape, array.dtype, (Piece(name),), frozenset({"model.safetensors"}))
            for name, array in arrays.items()
        }

    def read(self, name: str, rows: slice | None = None) -> mx.array:
        return self.arrays[name] if rows is None else self.arrays[name][rows]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_planned_and_made_in_pieces_is_what_mlx_makes_of_the_whole(data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from([None, *EVERY_FORMAT]), label="format")
    dtype, target = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([None, *DTYPES]))
    width = max((chosen or {"group_size": 3})["group_size"], 32) * data.draw(st.integers(1, 3))
    shape = (*data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)), width)
    weight = mx.random.normal(shape, key=mx.random.key(data.draw(st.integers(0, 99)))).astype(dtype)
    reader: Any = Memory({"model.layers.0.mlp.up_proj.weight": weight})
    plain = PlainEncoder({"model.layers.0.mlp.up_proj": chosen}, dtype=target)
    plan = make_plan(reader.parameters, plain, shard_bytes=1 << 30)

    made: dict[str, list[mx.array]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "PIECE_BYTES", data.draw(st.sampled_from([1, 700, 1 << 20]), label="piece"))
        for name, array in plain.encode(0, StoredWeights(reader, reader.parameters)):
            made.setdefault(name, []).append(array)

    cast = weight.astype(target or dtype)
    parts = [cast] if chosen is None else mx.quantize(cast, **chosen)
    expected = {f"model.layers.0.mlp.up_proj.{kind}": a for kind, a in zip(KINDS, parts, strict=False)}
    assert {name: (t.dtype, t.shape) for name, t in plan.tensors.items()} == {
        name: (a.dtype, a.shape) for name, a in expected.items()
    }
    for name, array in expected.items():
        assert mx.array_equal(mx.concatenate(made[name]).view(mx.uint8), array.view(mx.uint8))


def test_small_shards_hold_the_same_weights(source: Path, tmp_path: Path) -> None:
    whole = convert(source, tmp_path / "whole", quantize=False)
    sharded = convert(source, tmp_path / "sharded", quantize=False, shard_bytes=200_000)
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in stored(whole).values())
    assert sorted(set(index["weight_map"].values())) == files
    assert all(name in mx.load(str(sharded / file)) for name, file in index["weight_map"].items())
    assert np.array_equal(logits(load_model(whole)[0]), logits(load_model(sharded)[0]))
    largest = max(array.nbytes for array in stored(whole).values())
    assert all((sharded / file).stat().st_size < max(largest, 200_000) + 20_000 for file in files)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_shards_are_filled_in_the_models_order(tmp_path: Path, model_type: str) -> None:
    kinds = {"afmoe": "sliding_attention", "lfm2_moe": "full_attention"}
    changes = {"num_hidden_layers": 12, "layer_types": [kinds[model_type]] * 12, "tie_word_embeddings": False}
    folder = convert(tiny_folder(tmp_path / "a", model_type, **changes), tmp_path / "b", group_size=32, shard_bytes=1)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    order = [name.rpartition(".")[0] for name in sorted(index, key=index.__getitem__)]
    layers = [int(name.split(".")[2]) for name in order if ".layers." in name]
    assert layers == sorted(layers)
    assert set(layers) == set(range(12))
    assert order[0] == "model.embed_tokens"
    assert order[-4] in ("model.norm", "model.embedding_norm")
    assert order[-3:] == ["lm_head"] * 3


@pytest.mark.parametrize("chosen", FORMATS)
def test_files_are_read_by_the_safetensors_library_and_numbers_are_aligned(
    source: Path, tmp_path: Path, chosen: str
) -> None:
    path = convert(source, tmp_path / "out", **FORMATS[chosen]) / "model.safetensors"
    ours = mx.load(str(path))
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "mlx"}
        assert set(file.keys()) == ours.keys()
        assert all(np.array_equal(file.get_tensor(name), np.array(array)) for name, array in ours.items())
    assert all(place.begin % ours[name].dtype.size == 0 for name, place in read_places(path).items())


@pytest.mark.parametrize("name", ["afmoe-base", "lfm2_moe-base"])
@pytest.mark.parametrize("options", [{"group_size": 32}, {"quantize": False}], ids=["quantized", "plain"])
def test_every_layout_of_a_source_gives_the_same_bytes(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    made, found = golden(name), []
    for number, layout in enumerate((None, packed, stacked)):
        folder = write(tmp_path / f"from {number}", made.config, made.tensors, layout=layout, shards=1 + 2 * number)
        recast(folder, mx.bfloat16)
        found.append(contents(convert(folder, tmp_path / f"to {number}", **options)))
    assert found[0] == found[1] == found[2]


def test_experts_in_different_number_formats_are_refused(tmp_path: Path) -> None:
    made = golden("afmoe-base")
    folder = recast(write(tmp_path / "a", made.config, made.tensors), mx.bfloat16, keep=".experts.1.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"up_proj.weight is stored in BF16 and F32: expected one number format"):
        convert(folder, tmp_path / "b")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_no_more_than_a_piece_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, tied: bool
) -> None:
    source = tiny_folder(tmp_path / "a", model_type, **WIDE[model_type], tie_word_embeddings=tied)
    row = 128 * 128 * 4  # an expert's projection
    monkeypatch.setattr(encoder, "PIECE_BYTES", row)
    read, sizes = SourceReader.read, []

    def counted(reader: SourceReader, name: str, rows: slice | None = None) -> mx.array:
        sizes.append(read(reader, name, rows).nbytes)
        return read(reader, name, rows)

    monkeypatch.setattr(SourceReader, "read", counted)
    convert(source, tmp_path / "b")
    assert max(sizes) == row
    assert sum(sizes) == sum(array.nbytes for array in stored(source).values())
