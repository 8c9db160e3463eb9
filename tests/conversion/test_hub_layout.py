"""Our tensors are those of the Hub's files under other names, and back again Transformers loads them."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import convert, load_model
from afmoe_mlx.checkpoint import open_model
from afmoe_mlx.checkpoint.layouts import is_extra, pieces_of
from afmoe_mlx.conversion.hub_layout import hub_tensors
from afmoe_mlx.models import make_model, read_config
from afmoe_mlx.models.shapes import SHAPES, shape
from helpers.checkpoints import golden, write, write_golden
from helpers.converted import WIDE, config_of, logits, stored
from helpers.grid import GRID
from helpers.tiny import ARCHITECTURES, BASES, tiny


@pytest.mark.parametrize("name", GRID)
def test_our_tensors_are_byte_for_byte_those_that_transformers_saved(tmp_path: Path, name: str) -> None:
    made = golden(name)
    model = open_model(write_golden(tmp_path, name))
    found: dict[str, np.ndarray] = {}
    for ours, array in tree_flatten(model.parameters()):
        values, start = np.array(array).ravel(), 0
        for theirs, size in hub_tensors(ours, array.shape, made.config["model_type"]):
            found[theirs] = values[start : start + np.prod(size, dtype=int)].reshape(size)
            start += found[theirs].size
        assert start == values.size
    tied = made.config["tie_word_embeddings"]
    saved = {key: a for key, a in made.tensors.items() if not is_extra(key, a.shape, tied=tied)}
    assert found.keys() == saved.keys()
    assert all(np.array_equal(found[key], saved[key]) for key in saved)


@pytest.mark.parametrize("name", SHAPES)
def test_every_name_of_the_hub_is_read_as_a_piece_of_ours(name: str) -> None:
    config = shape(name)
    for ours, array in tree_flatten(make_model(read_config(config)).parameters()):
        theirs = hub_tensors(ours, array.shape, config["model_type"])
        pieces = [pieces_of(key, config["model_type"]) for key, _ in theirs]
        assert all(len(found) == 1 and found[0][0] == ours for found in pieces)
        experts = [found[0][1].expert for found in pieces]
        assert experts == ([None] if len(theirs) == 1 else list(range(config["num_experts"])))


FORMATS: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 3},
    {"mode": "mxfp4"},
    {"mode": "nvfp4"},
    {"recipe": "mixed_3_6"},
]


def hub_folder(folder: Path, model_type: str, **changes: Any) -> Path:
    """A wide model as Transformers would save it."""
    config = {"model_type": model_type} | BASES[model_type] | WIDE[model_type] | changes
    tensors = {}
    for ours, array in tree_flatten(tiny(model_type, **WIDE[model_type] | changes).parameters()):
        names = hub_tensors(ours, array.shape, model_type)
        parts = np.split(np.array(array).ravel(), len(names))
        tensors |= {name: part.reshape(size) for part, (name, size) in zip(parts, names, strict=True)}
    return write(folder, config, tensors)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("options", FORMATS, ids=str)
def test_back_again_every_tensor_has_its_name_and_shape_and_what_was_not_quantized_its_bytes(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    source = hub_folder(tmp_path / "a", model_type)
    quantized = convert(source, tmp_path / "b", **options)
    before, after = stored(source), stored(convert(quantized, tmp_path / "c", dequantize=True, dtype="float32"))
    assert {name: (a.shape, a.dtype) for name, a in after.items()} == {
        name: (a.shape, a.dtype) for name, a in before.items()
    }
    scales = {name.removesuffix(".scales") for name in stored(quantized) if name.endswith(".scales")}
    kept = [name for name in before if pieces_of(name, model_type)[0][0].removesuffix(".weight") not in scales]
    assert any(name.endswith("gate.weight") for name in kept)
    assert all(mx.array_equal(before[name], after[name]) for name in kept)
    assert np.abs(logits(load_model(tmp_path / "c")[0]) - logits(load_model(quantized)[0])).max() < 1e-4


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_config_says_what_transformers_would(tmp_path: Path, model_type: str, dtype: str) -> None:
    source = hub_folder(tmp_path / "a", model_type)
    back = convert(convert(source, tmp_path / "b"), tmp_path / "c", dequantize=True, dtype=dtype)
    raw = config_of(back)
    assert raw["dtype"] == dtype
    assert raw["architectures"] == [{"afmoe": "AfmoeForCausalLM", "lfm2_moe": "Lfm2MoeForCausalLM"}[model_type]]
    assert not raw.keys() & {"torch_dtype", "quantization", "quantization_config"}
    assert load_model(back)[1] == load_model(source)[1]


@pytest.mark.reference
@pytest.mark.parametrize("name", ["afmoe-everything", "afmoe-three_shared", "lfm2_moe-base", "lfm2_moe-everything"])
@pytest.mark.parametrize("options", [{"group_size": 32}, {"mode": "mxfp4"}, {"mode": "nvfp4"}], ids=str)
def test_transformers_loads_what_was_dequantized_with_equal_logits(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    # embeddings in mxfp4 and its like are scaled in bfloat16, their plain weights are not
    changes = {"mup_enabled": False} if "mode" in options and name.startswith("afmoe") else {}
    quantized = convert(write_golden(tmp_path / "a", name, **changes), tmp_path / "b", **options)
    back = convert(quantized, tmp_path / "c", dequantize=True, dtype="float32")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(back, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = golden(name).arrays["ids"]
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(ids)).logits.numpy()
    assert np.abs(theirs - golden(name).arrays["logits"]).max() > 1e-2
    for folder in (back, quantized):
        assert np.abs(np.array(load_model(folder)[0](mx.array(ids))) - theirs).max() < 1e-4
