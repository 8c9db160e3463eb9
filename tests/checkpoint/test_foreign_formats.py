"""Any codes, scales, shapes and patterns of other quantizers' formats, against the NumPy twin."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import convert, load_model
from afmoe_mlx.evaluation.matrices import KINDS, Matrices, _float32, matrix_modules
from afmoe_mlx.models import make_model, read_config
from helpers import foreign
from helpers.grid import AFMOE

Draw = Callable[[st.SearchStrategy[Any]], Any]


def numbers(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def scales(rng: np.random.Generator, *shape: int) -> tuple[str, np.ndarray]:
    return "BF16", foreign.bfloat16(2.0 ** rng.uniform(-12, -4, shape))


def float8(draw: Draw, n: int, k: int, block: tuple[int, int]) -> foreign.Stored:
    rng = numbers(draw)
    codes = rng.integers(0, 256, (n, k), np.uint8)
    codes[codes & 127 == 127] = 1  # no number; a subnormal one instead
    whole, rows = (1,), (n, 1)
    blocks = (-(-n // block[0]), -(-k // block[1]))
    shape = draw(st.sampled_from([(), whole, (1, 1), rows, (n,), blocks]))
    return {"weight": ("F8_E4M3", codes), "weight_scale": scales(rng, *shape)}


def integers(draw: Draw, n: int, k: int, block: tuple[int, int]) -> foreign.Stored:
    rng, bits = numbers(draw), draw(st.sampled_from([4, 8]))
    groups = draw(st.sampled_from([count for count in range(1, k + 1) if k % count == 0 and k // count >= 4]))
    found = {
        "weight_packed": ("I32", foreign.pack(rng.integers(0, 2**bits, (n, k)), bits)),
        "weight_scale": scales(rng, n, groups),
        "weight_shape": ("I64", np.array([n, k])),
    }
    if draw(st.booleans()):
        zero = rng.integers(0, 2**bits, (groups, n))
        found["weight_zero_point"] = ("I32", np.ascontiguousarray(foreign.pack(zero, bits).T))
    return found


def nvfp4(draw: Draw, n: int, k: int, block: tuple[int, int]) -> foreign.Stored:
    rng = numbers(draw)
    scale = rng.integers(0, 127, (n, k // 16), np.uint8)
    codes, whole = ("U8", rng.integers(0, 256, (n, k // 2), np.uint8)), np.float32(2.0 ** rng.uniform(-16, -8))
    if draw(st.booleans()):
        return {
            "weight": codes,
            "weight_scale": ("F8_E4M3", scale),
            "weight_scale_2": ("F32", np.array(whole)),
            "input_scale": ("F32", np.array(whole)),
        }
    return {
        "weight_packed": codes,
        "weight_scale": ("F8_E4M3", scale),
        "weight_global_scale": ("F32", np.array([1 / whole], np.float32)),
        "input_global_scale": ("F32", np.array([whole])),
    }


FORMATS = {"float8": float8, "integers": integers, "nvfp4": nvfp4}


@st.composite
def checkpoints(draw: Draw) -> tuple[dict[str, Any], foreign.Stored]:
    """A config and its tensors: each linear map in a format of its own or none, each expert with scales of its own."""
    sizes = st.sampled_from([16, 32, 48, 64, 144])
    names = ("hidden_size", "intermediate_size", "moe_intermediate_size")
    shape = {name: draw(sizes) for name in names} | {"head_dim": draw(st.sampled_from([8, 10])), "num_experts": 3}
    block = draw(st.sampled_from([(128, 128), (16, 32), (100, 7)]))
    config = AFMOE | shape | {"model_type": "afmoe", "num_hidden_layers": 2, "global_attn_every_n_layers": 2}
    scheme = {"weights": {"block_structure": [*block], "num_bits": 8}, "targets": ["re:.*"]}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {"any": scheme}}
    tensors: foreign.Stored = {}
    for path, module in make_model(read_config(config)).named_modules():
        if "weight" not in module:
            continue
        array = module.weight
        rng = numbers(draw)
        is_map = array.ndim > 1 and "embed" not in path and "router" not in path
        fitting = [name for name in FORMATS if name != "nvfp4" or array.shape[-1] % 16 == 0]
        chosen = draw(st.sampled_from([*fitting, None])) if is_map else None
        for i in range(array.shape[0] if array.ndim == 3 else 1):
            stored = path.replace(".experts.", f".experts.{i}.") if array.ndim == 3 else path
            if chosen is None or (array.ndim == 3 and draw(st.integers(0, 9)) == 0):
                values = rng.standard_normal(array.shape[-2:] if is_map else array.shape) / 8
                tensors[f"{stored}.weight"] = ("BF16", foreign.bfloat16(values))
                continue
            for kind, value in FORMATS[chosen](draw, *array.shape[-2:], block).items():
                tensors[f"{stored}.{kind}"] = value
    bias = ("F32", np.zeros(3, np.float32))
    tensors |= {"model.layers.1.mlp.expert_bias": bias}
    return config, tensors


def block_of(config: dict[str, Any]) -> tuple[int, int]:
    rows, columns = config["quantization_config"]["config_groups"]["any"]["weights"]["block_structure"]
    return rows, columns


def by_module(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts' matrices one after another, under the name of all of them."""
    found: dict[str, list[np.ndarray]] = {}
    for name, values in sorted(tensors.items()):
        path = name.removesuffix(".weight")
        parts = path.split(".experts.")
        found.setdefault(path if len(parts) == 1 else f"{parts[0]}.experts.{parts[1][2:]}", []).append(values)
    return {path: np.concatenate(values) for path, values in found.items()}


def loaded(folder: Path) -> dict[str, np.ndarray]:
    """As `matrices`, of the model that is loaded."""
    model, _ = load_model(folder, fuse=False)
    found = {}
    for path, module in matrix_modules(model).items():
        parts = {kind: module[kind] for kind in KINDS if module.get(kind) is not None}
        weight = np.array(_float32(parts, module))
        found[path] = weight.reshape(-1, weight.shape[-1])
    return found


def matrices(folder: Path) -> dict[str, np.ndarray]:
    opened = Matrices(folder)
    return {path: np.concatenate([np.array(rows) for rows in opened.float32_rows(path)]) for path in opened}


@pytest.mark.parametrize("kept", [True, False])
@settings(max_examples=5, deadline=None)
@given(made=checkpoints())
def test_what_is_loaded_and_converted_is_what_was_stored(kept: bool, made: tuple[dict[str, Any], Any]) -> None:
    config, tensors = made
    expected = by_module(foreign.plain(tensors, block_of(config)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a").mkdir()
        (folder / "a" / "config.json").write_text(json.dumps(config))
        foreign.write_file(folder / "a" / "model.safetensors", tensors)
        plain = {"dequantize": True} if not kept else {"quantize": False}
        convert(folder / "a", folder / "b", dtype="float32", **plain)
        for found in (loaded(folder / "a"), matrices(folder / "a"), matrices(folder / "b")):
            for path, values in found.items():
                # a sum of products that cancel may lose what one of them has
                allowed = 4e-7 * np.abs(expected[path]).max()
                np.testing.assert_allclose(values, expected[path], rtol=4e-7, atol=allowed, err_msg=path)


def test_pieces_of_a_matrix_are_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks, and zero points packed along rows, do not begin where a piece of rows does."""
    from afmoe_mlx.evaluation import matrices as module

    for name in ("fp8_block", "w4a16_asymmetric"):
        foreign.write_golden(tmp_path / name, name)
        whole = matrices(tmp_path / name)
        monkeypatch.setattr(module, "PIECE", 64 * 3)
        pieces = matrices(tmp_path / name)
        assert all(np.array_equal(whole[path], pieces[path]) for path in whole)
        monkeypatch.undo()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_the_twin_packs_as_it_unpacks(n: int, k: int, bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (n, k))
    assert np.array_equal(foreign.unpack(foreign.pack(codes, bits).view(np.uint32), bits)[:, :k], codes)
