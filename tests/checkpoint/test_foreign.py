"""Checkpoints that compressed-tensors and ModelOpt wrote stand for exactly what is computed with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx import convert, load_model
from afmoe_mlx.checkpoint.files import find_weights, read_config_json, read_headers
from afmoe_mlx.checkpoint.foreign import translate
from afmoe_mlx.errors import CheckpointError, ConfigError
from afmoe_mlx.evaluation.matrices import Matrices
from helpers import foreign
from helpers.command_line import run

KEPT = {
    "w4a16": {"group_size": 32, "bits": 4, "mode": "affine"},
    "w4a16_asymmetric": {"group_size": 32, "bits": 4, "mode": "affine"},
    "w4a16_channel": {"group_size": 64, "bits": 4, "mode": "affine"},
    "w8a16": {"group_size": 32, "bits": 8, "mode": "affine"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "nvfp4a16": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "modelopt_nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
}
PLAIN = [name for name in foreign.NAMES if name not in KEPT]


def logits(folder: Path, ids: np.ndarray, **options: Any) -> np.ndarray:
    return np.array(load_model(folder, **options)[0](mx.array(ids)).astype(mx.float32))


def exact(folder: Path) -> dict[str, np.ndarray]:
    """The matrices that a checkpoint stands for by the NumPy twin, under our names, experts one after another."""
    tensors = foreign.plain(foreign.read_file((folder / "model.safetensors").read_bytes()))
    lfm2 = json.loads((folder / "config.json").read_text())["model_type"] == "lfm2_moe"
    found: dict[str, list[np.ndarray]] = {}
    for name, values in sorted(tensors.items()):
        path = name.removesuffix(".weight")
        if lfm2:
            for letter, projection in {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.items():
                path = path.replace(f".{letter}", f".{projection}")
        parts = path.split(".")
        if "experts" in parts:
            i = parts.index("experts")
            parts[i : i + 2] = ["switch_mlp" if lfm2 else "experts"]
        found.setdefault(".".join(parts), []).append(values)
    return {path: np.concatenate(values) for path, values in found.items()}


def matrices(folder: Path) -> dict[str, np.ndarray]:
    opened = Matrices(folder)
    return {path: np.concatenate([np.array(rows) for rows in opened.float32_rows(path)]) for path in opened}


def change(folder: Path, edit: Callable[[foreign.Stored], Any], config: dict[str, Any] | None = None) -> None:
    """Change the tensors, and keys of quantization_config."""
    path = folder / "model.safetensors"
    tensors = foreign.read_file(path.read_bytes())
    edit(tensors)
    foreign.write_file(path, tensors)
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] |= config or {}
    (folder / "config.json").write_text(json.dumps(raw))


def test_every_code_of_float8_is_the_number_it_stands_for() -> None:
    found = np.array(mx.from_fp8(mx.arange(256).astype(mx.uint8), mx.float32))
    assert np.array_equal(found, foreign.FLOAT8.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("name", foreign.NAMES)
@pytest.mark.parametrize("fuse", [True, False])
def test_the_logits_are_transformers_for_the_weights_it_stands_for(tmp_path: Path, name: str, fuse: bool) -> None:
    ids, expected = foreign.write_golden(tmp_path, name)
    assert np.abs(logits(tmp_path, ids, fuse=fuse) - expected).max() < 2e-5


@pytest.mark.parametrize("name", foreign.NAMES)
def test_an_evaluation_reads_the_weights_it_stands_for(tmp_path: Path, name: str) -> None:
    foreign.write_golden(tmp_path, name)
    expected = exact(tmp_path)
    for path, found in matrices(tmp_path).items():
        np.testing.assert_allclose(found.ravel(), expected[path].ravel(), rtol=3e-7, atol=0, err_msg=path)


@pytest.mark.parametrize("name", KEPT)
def test_codes_that_mlx_has_too_are_converted_without_rounding(tmp_path: Path, name: str) -> None:
    ids, expected = foreign.write_golden(tmp_path / "a", name)
    convert(tmp_path / "a", tmp_path / "b")
    assert KEPT[name].items() <= read_config_json(tmp_path / "b")["quantization"].items()
    assert "quant_method" not in read_config_json(tmp_path / "b")["quantization_config"]
    assert np.abs(logits(tmp_path / "b", ids) - expected).max() < 2e-5


def test_asked_not_to_quantize_it_keeps_its_codes_as_well(tmp_path: Path) -> None:
    foreign.write_golden(tmp_path / "a", "w4a16")
    for target, quantize in (("b", True), ("c", False)):
        convert(tmp_path / "a", tmp_path / target, quantize=quantize)
    files = [(tmp_path / target / "model.safetensors").read_bytes() for target in "bc"]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["nvfp4"])
def test_what_was_kept_can_be_dequantized_later(tmp_path: Path, name: str) -> None:
    ids, expected = foreign.write_golden(tmp_path / "a", name)
    convert(tmp_path / "a", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "back", dequantize=True, dtype="float32")
    assert np.abs(logits(tmp_path / "back", ids) - expected).max() < 2e-5


@pytest.mark.parametrize("name", [*PLAIN, "w4a16_asymmetric", "modelopt_nvfp4"])
def test_dequantized_in_float32_it_is_what_it_stands_for(tmp_path: Path, name: str) -> None:
    ids, expected = foreign.write_golden(tmp_path / "a", name)
    convert(tmp_path / "a", tmp_path / "b", dequantize=True, dtype="float32")
    assert not read_config_json(tmp_path / "b").keys() & {"quantization", "quantization_config"}
    assert np.abs(logits(tmp_path / "b", ids) - expected).max() < 2e-5


@pytest.mark.parametrize("name", ["fp8_block", "modelopt_nvfp4"])
def test_quantized_as_asked_it_is_what_its_plain_weights_become(tmp_path: Path, name: str) -> None:
    foreign.write_golden(tmp_path / "a", name)
    convert(tmp_path / "a", tmp_path / "plain", dequantize=True, dtype="bfloat16")
    for source in ("a", "plain"):
        convert(tmp_path / source, tmp_path / f"{source}-8", bits=8, group_size=32)
    files = [(tmp_path / f"{source}-8" / "model.safetensors").read_bytes() for source in ("a", "plain")]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", PLAIN[:1])
def test_without_codes_of_mlx_it_is_quantized_by_default(tmp_path: Path, name: str) -> None:
    foreign.write_golden(tmp_path / "a", name)
    convert(tmp_path / "a", tmp_path / "b", group_size=32)
    assert read_config_json(tmp_path / "b")["quantization"]["bits"] == 4
    scales = [t.dtype for n, t in read_headers(find_weights(tmp_path / "b")).items() if n.endswith(".scales")]
    assert set(scales) == {"BF16"}  # as the rest of the model, not as what it was computed in


@pytest.mark.parametrize("name", foreign.NAMES)
def test_its_size_is_that_of_its_file(tmp_path: Path, name: str) -> None:
    foreign.write_golden(tmp_path, name)
    stored = read_headers(find_weights(tmp_path))
    _, translated = translate(read_config_json(tmp_path), stored)
    # activations' scales aside
    weights = sum(t.nbytes for n, t in stored.items() if not n.endswith(("input_scale", "input_global_scale")))
    assert sum(tensor.nbytes for tensor in translated.values()) == weights


def test_info_tells_its_bytes_and_bits(tmp_path: Path) -> None:
    foreign.write_golden(tmp_path, "w4a16")
    told = json.loads(run("info", str(tmp_path), "--json").out)
    assert told["quantization"] == KEPT["w4a16"]
    assert told["disk_bytes"] == sum(tensor.nbytes for tensor in read_headers(find_weights(tmp_path)).values())


@pytest.mark.parametrize(("name", "was"), [("fp8_block", "float8"), ("nvfp4a16", "nvfp4"), ("w8a16", "8 bits")])
def test_a_dry_run_names_the_formats(tmp_path: Path, name: str, was: str) -> None:
    foreign.write_golden(tmp_path, name)
    text = run("convert", "--hf-path", str(tmp_path), "--dry-run").out
    maps = [line for line in text.splitlines() if "_proj" in line]
    assert maps
    assert all(was in line for line in maps)
    assert ("quantized as it is" in text) == (name in KEPT)


def test_zero_points_keep_their_precision_in_bfloat16(tmp_path: Path) -> None:
    foreign.write_golden(tmp_path, "w4a16_asymmetric")
    model, _ = load_model(tmp_path, dtype="bfloat16", fuse=False)
    layer = model.model.layers[0].mlp.gate_proj
    assert (layer.scales.dtype, layer.biases.dtype) == (mx.bfloat16, mx.float32)
    assert model(mx.array([[1, 2, 3]])).dtype == mx.bfloat16


@pytest.mark.parametrize("name", ["nvfp4", "modelopt_nvfp4"])
def test_every_expert_has_its_own_global_scale(tmp_path: Path, name: str) -> None:
    ids, expected = foreign.write_golden(tmp_path, name)
    kind = "weight_scale_2" if name.startswith("modelopt") else "weight_global_scale"

    def twice(tensors: foreign.Stored) -> None:
        key = f"model.layers.1.mlp.experts.1.down_proj.{kind}"
        tensors[key] = (tensors[key][0], tensors[key][1] * 2)

    change(tmp_path, twice)
    wanted = exact(tmp_path)["model.layers.1.mlp.experts.down_proj"]
    np.testing.assert_allclose(matrices(tmp_path)["model.layers.1.mlp.experts.down_proj"].ravel(), wanted.ravel(), 3e-7)
    assert np.abs(logits(tmp_path, ids) - expected).max() > 1e-3


def left_out(tensors: foreign.Stored) -> None:
    """One expert as it was before."""
    path = "model.layers.1.mlp.experts.1.up_proj"
    weight = foreign.plain({name: value for name, value in tensors.items() if name.startswith(path)})
    for name in [name for name in tensors if name.startswith(path)]:
        del tensors[name]
    tensors[f"{path}.weight"] = ("BF16", foreign.bfloat16(weight[f"{path}.weight"]))


@pytest.mark.parametrize("name", ["fp8_block", "w4a16", "nvfp4"])
def test_an_expert_that_was_left_out_makes_all_of_them_plain(tmp_path: Path, name: str) -> None:
    foreign.write_golden(tmp_path, name)
    change(tmp_path, left_out)
    path = "model.layers.1.mlp.experts.up_proj"
    np.testing.assert_allclose(matrices(tmp_path)[path].ravel(), exact(tmp_path)[path].ravel(), 3e-7)
    assert "scales" not in load_model(tmp_path, fuse=False)[0].model.layers[1].mlp.experts.up_proj


def test_the_config_may_say_nothing_of_it(tmp_path: Path) -> None:
    ids, expected = foreign.write_golden(tmp_path, "modelopt_nvfp4")
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["quantization_config"]  # it is in hf_quant_config.json alone, or full of nulls
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert np.abs(logits(tmp_path, ids) - expected).max() < 2e-5


def test_scales_of_keys_and_values_are_not_applied(tmp_path: Path) -> None:
    ids, expected = foreign.write_golden(tmp_path, "nvfp4")
    scale = ("F32", np.array([7.0], np.float32))
    change(tmp_path, lambda tensors: tensors.update({f"model.layers.0.self_attn.{k}_scale": scale for k in "kv"}))
    assert np.abs(logits(tmp_path, ids) - expected).max() < 2e-5


UP = "model.layers.1.mlp.experts.0.up_proj"
REFUSED: dict[str, tuple[str, Callable[[foreign.Stored], Any], dict[str, Any], tuple[str, ...]]] = {
    "order of columns": (
        "w4a16",
        lambda t: t.update({f"{UP}.weight_g_idx": ("I32", np.zeros(64, np.int32))}),
        {},
        ("weight_g_idx", "another order"),
    ),
    "no scale": ("fp8_block", lambda t: t.pop(f"{UP}.weight_scale"), {}, (f"{UP}.weight is F8_E4M3",)),
    "no global scale": ("nvfp4", lambda t: t.pop(f"{UP}.weight_global_scale"), {}, (UP, "weight_packed U8", "whole")),
    "too few scales": (
        "fp8_block",
        lambda t: t.update({f"{UP}.weight_scale": ("BF16", np.ones((3, 5), np.float32))}),
        {},
        (f"{UP}.weight_scale is BF16 of shape (3, 5)", "block of 128 × 128"),
    ),
    "groups of no divisor": (
        "w4a16",
        lambda t: t.update({f"{UP}.weight_scale": ("BF16", np.ones((32, 5), np.float32))}),
        {},
        (f"{UP}.weight_scale is BF16 of shape (32, 5)", "group of columns"),
    ),
    "no groups": (
        "w4a16",
        lambda t: t.update({f"{UP}.weight_scale": ("BF16", np.ones((32, 0), np.float32))}),
        {},
        (f"{UP}.weight_scale is BF16 of shape (32, 0)",),
    ),
    "bits": (
        "w4a16",
        lambda t: t.update({f"{UP}.weight_packed": ("I32", np.zeros((32, 5), np.int32))}),
        {},
        (f"{UP}.weight_packed is I32 of shape (32, 5)", "4 or 8 bits"),
    ),
    "zero points": (
        "w4a16_asymmetric",
        lambda t: t.update({f"{UP}.weight_zero_point": ("I32", np.zeros((32, 2), np.int32))}),
        {},
        (f"{UP}.weight_zero_point", "8 rows of the scales in one"),
    ),
    "integers of 8 bits": (
        "fp8_block",
        lambda t: t.update({f"{UP}.weight": ("U8", t[f"{UP}.weight"][1])}),
        {},
        (f"{UP} has weight U8, weight_scale BF16", "NVFP4"),
    ),
    "of no module": (
        "fp8_block",
        lambda t: t.update({name.replace("mlp", "mtp"): value for name, value in t.items() if name.startswith(UP)}),
        {},
        ("unexpected model.layers.1.mtp", "not parameters"),
    ),
    "smoothed activations": (
        "modelopt_nvfp4",
        lambda t: t.update({f"{UP}.pre_quant_scale": ("BF16", np.ones(64, np.float32))}),
        {},
        ("unexpected", "pre_quant_scale"),
    ),
    "rotated activations": (
        "nvfp4",
        lambda t: None,
        {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
        ("transform_config",),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    name, edit, config, words = REFUSED[case]
    foreign.write_golden(tmp_path / "a", name)
    change(tmp_path / "a", edit, config)
    with pytest.raises((CheckpointError, ConfigError)) as found:
        load_model(tmp_path / "a")
    assert "\n" not in str(found.value)
    assert all(word in str(found.value) for word in words)
    with pytest.raises((CheckpointError, ConfigError), match=words[0].replace("(", r"\(").replace(")", r"\)")):
        convert(tmp_path / "a", tmp_path / "b")


def test_no_number_of_float8_is_found_by_a_conversion(tmp_path: Path) -> None:
    foreign.write_golden(tmp_path / "a", "fp8_block")

    def damaged(tensors: foreign.Stored) -> None:
        codes = tensors[f"{UP}.weight"][1].copy()
        codes[3, 5] = 255
        tensors[f"{UP}.weight"] = ("F8_E4M3", codes)

    change(tmp_path / "a", damaged)
    result = run("convert", "--model", str(tmp_path / "a"), "--mlx-path", str(tmp_path / "b"))
    assert result.code == 1
    assert f"model.safetensors: {UP}.weight holds NaN or infinity" in result.err.replace("\n", " ")
