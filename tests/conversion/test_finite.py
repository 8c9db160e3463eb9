"""What is NaN or infinite is not converted: the error names the tensor, and nothing appears."""

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx import convert
from afmoe_mlx.calibration import Calibration
from afmoe_mlx.conversion import encoder
from afmoe_mlx.conversion.finite import INFINITY, first_not_finite, is_finite
from afmoe_mlx.errors import ConversionError
from helpers.checkpoints import Tensors, golden, packed, recast, stacked, write
from helpers.converted import stored
from helpers.tiny import tiny_folder

BAD = {"nan": math.nan, "-nan": -math.nan, "inf": math.inf, "-inf": -math.inf}
WIDE = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}


@given(st.sampled_from(list(INFINITY)), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_every_pattern_of_bits_is_told_as_mlx_tells_it(dtype: mx.Dtype, bits: list[int]) -> None:
    array = mx.array(bits, mx.uint32).astype(INFINITY[dtype][1]).view(dtype)
    is_each = mx.isfinite(array).tolist()
    assert is_finite(array).item() == all(is_each)  # type: ignore[union-attr]
    if not all(is_each):
        assert first_not_finite(array) == is_each.index(False)


@pytest.mark.parametrize("dtype", INFINITY, ids=str)
def test_the_largest_numbers_and_zeros_are_finite(dtype: mx.Dtype) -> None:
    largest = mx.finfo(dtype).max
    assert is_finite(mx.array([largest, -largest, 0.0, -0.0], dtype)).item()  # type: ignore[union-attr]
    assert is_finite(mx.array([1, 2], mx.uint32)) is None


def spoiled(folder: Path, name: str, value: float, dtype: mx.Dtype | None = mx.bfloat16) -> Path:
    """A model folder with one bad number in a tensor, the last but one; its tensors are cast unless dtype is None."""
    if dtype is not None:
        recast(folder, dtype)
    (path,) = (path for path in folder.glob("*.safetensors") if name in mx.load(str(path)))
    tensors = dict(mx.load(str(path)))
    mx.eval(tensors)
    flat = tensors[name].reshape(-1)
    flat[-2] = value
    tensors[name] = flat.reshape(tensors[name].shape)
    mx.save_safetensors(str(path), tensors)
    return folder


def assert_refused(source: Path, target: Path, name: str, **options: Any) -> None:
    with pytest.raises(ConversionError, match="holds NaN or infinity") as raised:
        convert(source, target, **options)
    assert f"safetensors: {name} holds" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not target.exists()
    assert not target.with_name(f".{target.name}.partial").exists()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", INFINITY, ids=str)
def test_a_bad_number_is_found_in_every_format(tmp_path: Path, dtype: mx.Dtype, value: str) -> None:
    name = "model.layers.2.mlp.experts.up_proj.weight"
    assert_refused(spoiled(tiny_folder(tmp_path / "a", **WIDE), name, BAD[value], dtype), tmp_path / "out", name)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.router.gate.weight",
        "model.layers.1.mlp.expert_bias",
    ],
)
@pytest.mark.parametrize("options", [{}, {"quantize": False}, {"mode": "mxfp4"}], ids=["4 bits", "plain", "mxfp4"])
def test_whatever_it_becomes_a_bad_number_is_found(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    assert_refused(spoiled(tiny_folder(tmp_path / "a", **WIDE), name, math.nan), tmp_path / "out", name, **options)


@pytest.mark.parametrize("layout", [None, packed, stacked], ids=["per expert", "packed", "stacked"])
def test_the_error_names_the_tensor_of_the_file(tmp_path: Path, layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "PIECE_BYTES", 2000)
    made = golden("afmoe-base")
    tensors: Tensors = {name: np.array(tensor) for name, tensor in made.tensors.items()}
    bad = "model.layers.2.mlp.experts.3.up_proj.weight"
    tensors[bad][1, 2] = math.nan
    source = write(tmp_path / "a", made.config, tensors, layout=layout)
    name = {
        None: bad,
        packed: "model.layers.2.mlp.experts.gate_up_proj",
        stacked: "model.layers.2.mlp.experts.up_proj.weight",
    }[layout]
    assert_refused(source, tmp_path / "out", name, group_size=32)


def test_scales_of_a_quantized_source_are_looked_at(tmp_path: Path) -> None:
    source = convert(tiny_folder(tmp_path / "a", **WIDE), tmp_path / "q")
    name = "model.layers.1.mlp.experts.up_proj.scales"
    spoiled(source, name, math.nan, None)
    for options in ({"dequantize": True}, {"quantize": False}):
        assert_refused(source, tmp_path / "out", name, **options)


def test_a_calibrated_conversion_looks_too(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Hello, hello, the world is still. " * 9)
    calibrate = Calibration(text=tmp_path / "text.txt", tokens=100)
    name = "model.layers.1.mlp.experts.up_proj.weight"
    source = spoiled(tiny_folder(tmp_path / "a", **WIDE), name, math.nan, mx.float32)
    assert_refused(source, tmp_path / "out", name, calibrate=calibrate)


@pytest.mark.parametrize("options", [{}, {"quantize": False}], ids=["4 bits", "plain"])
def test_weights_beyond_the_range_of_another_dtype_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    name = "model.layers.1.mlp.experts.up_proj.weight"
    source = spoiled(tiny_folder(tmp_path / "a", **WIDE), name, 1e5)
    with pytest.raises(ConversionError, match=r"1\.mlp\.experts\.up_proj\.\w+ has weights beyond the range of float16"):
        convert(source, tmp_path / "out", dtype="float16", **options)
    assert not (tmp_path / "out").exists()
    made = stored(convert(source, tmp_path / "out", dtype="bfloat16", **options))
    assert all(mx.isfinite(array).all().item() for array in made.values())
