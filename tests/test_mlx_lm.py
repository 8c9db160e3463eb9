"""Files go both ways between here and mlx-lm, with equal logits, unquantized and in every quantized form.

The configs are ones that mlx-lm computes as Transformers does: default RoPE, several experts a token, a full layer.
mlx-lm takes seconds to import, so only a process that runs these tests does.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import convert, load_model
from afmoe_mlx.calibration import Calibration
from afmoe_mlx.checkpoint import open_model
from afmoe_mlx.checkpoint.files import read_config_json
from afmoe_mlx.conversion.recipes import MIXED
from helpers.checkpoints import golden, packed, recast, write, write_golden
from helpers.tiny import ARCHITECTURES, tiny_folder, tokens

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="needs mlx-lm")

TOLERANCE = 1e-4
# The square root of 128 is not exact in bfloat16, in which embeddings in mxfp4 and its like are scaled.
WIDTHS = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "afmoe": WIDTHS | {"head_dim": 32, "layer_types": ["sliding_attention", "full_attention"]},
    "lfm2_moe": WIDTHS | {"layer_types": ["conv", "full_attention"]},
}
FORMATS: dict[str, dict[str, Any]] = {
    "4 bits": {"bits": 4, "group_size": 64},
    "8 bits": {"bits": 8, "group_size": 32},
    "mxfp4": {"mode": "mxfp4"},
    "nvfp4": {"mode": "nvfp4"},
    "mxfp8": {"mode": "mxfp8"},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_files(tmp_path_factory.mktemp("source"), request.param)


def plain_files(folder: Path, model_type: str, **changes: Any) -> Path:
    """A plain model in the spelling that mlx-lm reads: every key written out."""
    made = tiny_folder(folder / "made", model_type, **SHAPES[model_type] | changes)
    return convert(made, folder / "plain", quantize=False)


def mlx_lm(module: str = "utils") -> Any:
    return importlib.import_module(f"mlx_lm.{module}")


def logits(model: Any) -> np.ndarray:
    return np.array(model(tokens(1, 33)).astype(mx.float32))


def assert_equal_logits(folder: Path) -> None:
    theirs, _ = mlx_lm().load_model(folder)
    expected = logits(theirs)
    assert np.abs(expected).max() > 0.5
    for fuse in (True, False):
        assert np.abs(logits(load_model(folder, fuse=fuse)[0]) - expected).max() < TOLERANCE


def test_plain_files_of_ours_load_there(source: Path, tmp_path: Path) -> None:
    assert_equal_logits(convert(source, tmp_path / "out", quantize=False))


@pytest.mark.parametrize("chosen", FORMATS)
def test_quantized_files_of_ours_load_there(source: Path, tmp_path: Path, chosen: str) -> None:
    assert_equal_logits(convert(source, tmp_path / "out", **FORMATS[chosen]))


@pytest.mark.parametrize("recipe", ["4bit", *MIXED])  # other widths of one format are packed alike
def test_every_built_in_recipe_of_ours_loads_there(source: Path, tmp_path: Path, recipe: str) -> None:
    folder = convert(source, tmp_path / "out", recipe=recipe)
    assert_equal_logits(folder)
    entries = [entry for entry in read_config_json(folder)["quantization"].values() if isinstance(entry, dict)]
    assert bool(entries) == (recipe in MIXED)


@pytest.mark.parametrize(("recipe", "method"), [(None, "scales"), ("mixed_4_6", "gptq")])
def test_calibrated_files_of_ours_load_there(source: Path, tmp_path: Path, recipe: str | None, method: str) -> None:
    (tmp_path / "text.txt").write_text("The wind fell before dawn, and hello, the world was still. " * 5)
    calibrate = Calibration(text=tmp_path / "text.txt", tokens=80, method=method)
    options: dict[str, Any] = {"bits": 4, "group_size": 32} if recipe is None else {"recipe": recipe}
    folder = convert(source, tmp_path / "out", calibrate=calibrate, **options)
    assert_equal_logits(folder)
    plain = convert(source, tmp_path / "plain", **options)
    assert read_config_json(folder) == read_config_json(plain)
    assert np.abs(logits(load_model(folder)[0]) - logits(load_model(plain)[0])).max() > 10 * TOLERANCE


def test_a_recipe_file_of_several_modes_loads_there(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        """
        [default]
        bits = 3
        group_size = 32
        [[rules]]
        modules = ["*.experts.*", "*.switch_mlp.*"]
        mode = "mxfp4"
        [[rules]]
        modules = "*.down_proj"
        bits = 6
        [[rules]]
        modules = "model.layers.0.self_attn.*"
        keep = true
        """
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # either architecture lacks what a rule is for
        assert_equal_logits(convert(source, tmp_path / "out", recipe=str(tmp_path / "mine.toml")))


@pytest.mark.parametrize("name", ["afmoe-base", "afmoe-three_shared", "afmoe-no_shared", "lfm2_moe-base"])
@pytest.mark.parametrize("layout", [None, packed], ids=["per expert", "packed"])
def test_what_transformers_wrote_loads_there_once_converted(tmp_path: Path, name: str, layout: Any) -> None:
    made = golden(name)
    source = write(tmp_path / "a", made.config, made.tensors, layout=layout)
    assert_equal_logits(convert(source, tmp_path / "b", quantize=False))


def test_a_config_without_layer_types_loads_there_once_converted(tmp_path: Path) -> None:
    made = golden("afmoe-base")
    raw = {key: value for key, value in made.config.items() if key != "layer_types"}
    source = write(tmp_path / "a", raw, made.tensors)
    assert_equal_logits(convert(source, tmp_path / "b", quantize=False))


@pytest.mark.parametrize("name", ["afmoe-theta", "afmoe-linear", "afmoe-llama3", "afmoe-yarn"])
def test_rope_is_written_so_that_mlx_lm_reads_it(tmp_path: Path, name: str) -> None:
    converted = convert(write_golden(tmp_path / "a", name), tmp_path / "b", quantize=False)
    theirs, _ = mlx_lm().load_model(converted)
    arrays = golden(name).arrays
    assert np.abs(np.array(theirs(mx.array(arrays["ids"]))) - arrays["logits"]).max() < TOLERANCE


def mlx_lm_files(source: Path, target: Path, *, predicate: Any = None, **options: Any) -> Path:
    """What mlx_lm.convert writes of the model, without a tokenizer."""
    model, config = mlx_lm().load_model(source)
    if options:
        options = {"group_size": None, "bits": None} | options
        model, config = mlx_lm().quantize_model(model, config, **options, quant_predicate=predicate)
    mlx_lm().save_model(target, model)
    mlx_lm().save_config(config, target / "config.json")
    return target


def test_plain_files_of_mlx_lm_load_here(source: Path, tmp_path: Path) -> None:
    assert_equal_logits(mlx_lm_files(source, tmp_path / "out"))


@pytest.mark.parametrize("chosen", FORMATS)
def test_quantized_files_of_mlx_lm_load_here(source: Path, tmp_path: Path, chosen: str) -> None:
    folder = mlx_lm_files(source, tmp_path / "out", **FORMATS[chosen])
    gate = next(name for name in read_config_json(folder)["quantization"] if name.endswith("gate"))
    assert read_config_json(folder)["quantization"][gate] == {"group_size": 64, "bits": 8}
    assert_equal_logits(folder)


def test_the_mixed_recipes_have_the_names_of_mlx_lms() -> None:
    assert set(MIXED) == set(mlx_lm("convert").QUANT_RECIPES)


@pytest.mark.parametrize("recipe", MIXED)
def test_mixed_recipes_of_mlx_lm_load_here(source: Path, tmp_path: Path, recipe: str) -> None:
    model, _ = mlx_lm().load_model(source, lazy=True)
    predicate = mlx_lm("convert").mixed_quant_predicate_builder(recipe, model, 64)
    folder = mlx_lm_files(source, tmp_path / "out", predicate=predicate, bits=4, group_size=64)
    chosen = read_config_json(folder)["quantization"].values()
    assert len({entry["bits"] for entry in chosen if isinstance(entry, dict)}) == 2
    assert_equal_logits(folder)


MIXTURES: dict[str, Callable[[str, Any], Any]] = {
    "plain attention": lambda path, _: "self_attn" not in path,
    "experts in mxfp4": lambda path, _: {"group_size": 32, "bits": 4, "mode": "mxfp4"} if "experts" in path else True,
    "q alone in 8 bits": lambda path, _: {"group_size": 32, "bits": 8} if "q_proj" in path else True,
    "gate and up apart": lambda path, _: {"group_size": 32, "bits": 3} if "up_proj" in path else True,
    "router in 4 bits": lambda path, _: {"group_size": 64, "bits": 4} if path.endswith("gate") else True,
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_any_mixture_of_mlx_lm_loads_here(source: Path, tmp_path: Path, mixture: str) -> None:
    predicate = MIXTURES[mixture]
    assert_equal_logits(mlx_lm_files(source, tmp_path / "out", predicate=predicate, bits=4, group_size=64))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_expert_scales_of_mlx_lm_load_here(tmp_path: Path, model_type: str) -> None:
    unscaled = {"mup_enabled": False} if model_type == "afmoe" else {}
    source = plain_files(tmp_path, model_type, **unscaled)
    folder = mlx_lm_files(source, tmp_path / "out", mode="nvfp4", global_scale=True)
    stored = mx.load(str(folder / "model.safetensors"))
    assert sum(name.endswith("global_scale") for name in stored) == 3
    # mlx-lm cannot compute with them on the CPU: the plain weights they stand for, through its unquantized model
    theirs, _ = mlx_lm().load_model(convert(folder, tmp_path / "back", dequantize=True, dtype="float32"))
    for fuse in (True, False):
        assert np.abs(logits(load_model(folder, fuse=fuse)[0]) - logits(theirs)).max() < TOLERANCE


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_half_precision_files_of_mlx_lm_load_here(tmp_path: Path, dtype: mx.Dtype) -> None:
    source = recast(tiny_folder(tmp_path / "a", **SHAPES["afmoe"]), dtype)
    folder = mlx_lm_files(source, tmp_path / "b", bits=4, group_size=64)
    ours, theirs = load_model(folder)[0], mlx_lm().load_model(recast(folder, mx.float32, keep="weight"))[0]
    assert np.abs(logits(ours) - logits(theirs)).max() < 0.05


def test_parameter_names_are_those_that_mlx_lm_stores(source: Path) -> None:
    theirs, _ = mlx_lm().load_model(source)
    ours = open_model(source)
    assert {n: a.shape for n, a in tree_flatten(ours.parameters())} == {
        n: a.shape for n, a in tree_flatten(theirs.parameters())
    }
