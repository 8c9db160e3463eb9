"""What is different on Metal and on CUDA, as far as the CPU can tell: the defaults, and each way computes the same."""

import os
import subprocess
import sys
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest

from afmoe_mlx import device, load_model
from afmoe_mlx.cache import KVQuantization
from afmoe_mlx.checkpoint.random import random_model
from afmoe_mlx.footprint.footprint import Footprint
from afmoe_mlx.generation import prefill
from afmoe_mlx.generation.drafts import most_guesses
from afmoe_mlx.models import chunk as chunks
from afmoe_mlx.models import make_model, moe, read_config, rope
from afmoe_mlx.models.shapes import shape
from helpers.tiny import ARCHITECTURES, tiny, tiny_folder, tokens

SHAPES = sorted(
    path.name.removesuffix(".json") for path in files("afmoe_mlx.models.shapes").iterdir() if ".json" in path.name
)
TOLERANCE = 2e-5


@pytest.fixture(params=["CPU", "Metal", "CUDA"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(device, "backend", lambda: request.param)
    return request.param


@pytest.mark.parametrize("given", [{}, dict.fromkeys(device.ENVIRONMENT, "1")])
def test_mlx_finds_its_environment_set_unless_the_user_set_it(given: dict[str, str]) -> None:
    code = f"import afmoe_mlx, os; print([os.environ[name] for name in {list(device.ENVIRONMENT)}])"
    clean = {name: value for name, value in os.environ.items() if name not in device.ENVIRONMENT}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean | given)
    assert found.stdout.strip() == str(list((device.ENVIRONMENT | given).values()))


@pytest.mark.parametrize("name", SHAPES)
def test_a_step_of_prompt_lookup_fits_the_kernel_for_few_queries(name: str, backend: str) -> None:
    model = tiny()
    config = model.config = read_config(shape(name))
    rows = (most_guesses(model) + 1) * (config.num_attention_heads // config.num_key_value_heads)
    assert rows <= device.METAL_FEW_QUERIES if backend == "Metal" else most_guesses(model) == 7


def test_a_larger_step_through_a_prompt_is_for_metal_with_memory_free(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = device.METAL_PREFILL_ROOM
    for free, seen, larger in ((room, 0, True), (room - 1, 0, False), (None, 0, False), (room, 1 << 16, False)):
        monkeypatch.setattr(device, "memory", lambda free=free: device.Memory(None, free))
        assert device.prefill_step(seen) == (2048 if larger and backend == "Metal" else 512)


def test_a_footprint_counts_what_the_smaller_step_needs_and_tells_what_the_larger_takes(backend: str) -> None:
    footprint = Footprint.of_conversion(read_config(shape("trinity-mini")), bits=4, context=4096)
    assert footprint.needed == footprint.weights.held + footprint.cache_bytes + device.PREFILL_ROOM
    larger = device.METAL_PREFILL_ROOM if backend == "Metal" else device.PREFILL_ROOM
    assert footprint.workspace + footprint.optional_workspace == larger


def test_a_prompt_is_run_in_the_devices_steps_and_buffers_are_returned_after_2048_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen, cleared = tiny(max_position_embeddings=8192), [], []
    monkeypatch.setattr(device, "prefill_step", lambda offset: 512 if offset < 1500 else 1024)
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(seen[-1]))
    cache = model.make_cache()
    prefill(model, tokens(1, 5000)[0].tolist(), cache, on_chunk=lambda: seen.append(cache.offset))
    assert seen == [512, 1024, 1536, 2560, 3584, 4608, 5000]
    assert cleared == [2560, 4608, 5000]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_keys_are_dequantized_where_slices_cannot_be_multiplied(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(head_dim=32)
    model.kv_quantization = KVQuantization(bits)
    cache, ids = model.make_cache(), tokens(1, 12)
    model(ids[:, :11], cache=cache)
    expected = model(ids[:, 11:], cache=cache)
    cache.rewind(1)
    monkeypatch.setattr(chunks, "multiplies_slices", lambda: False)
    monkeypatch.setattr(chunks, "attend_quantized", lambda *_, **__: pytest.fail("a slice was multiplied"))
    assert mx.abs(model(ids[:, 11:], cache=cache) - expected).max() < TOLERANCE


@pytest.mark.parametrize(("bits", "mode"), [(4, "affine"), (4, "mxfp4"), (8, "mxfp8")])
def test_experts_that_are_dequantized_first_give_the_same(
    bits: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, experts = mx.random.normal((40, 1, 64)), mx.sort(mx.random.randint(0, 5, (40,)))
    layer = moe.QuantizedExpertLinear(mx.random.normal((5, 32, 64)), 32, bits, mode)
    layer.eval()
    monkeypatch.setattr(moe, "dequantizes", lambda rows: False)
    expected = layer(x, experts, ordered=True)
    monkeypatch.setattr(moe, "dequantizes_experts", lambda rows: rows == 40)
    monkeypatch.setattr(mx, "gather_qmm", lambda *_, **__: pytest.fail("not dequantized"))
    assert mx.abs(layer(x, experts, ordered=True) - expected).max() < 1e-4


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_angles_too_large_for_the_rotary_kernel_come_from_tables(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks and steps on either side of the limit, and one across it, are those of tables alone."""
    model, ids = tiny(model_type), tokens(1, 30)
    expected = model(ids)
    lengths: list[int] = []
    monkeypatch.setattr(rope, "rotates_by_kernel", lambda positions: lengths.append(positions) or positions <= 16)
    kernel = mx.fast.rope
    used: list[int] = []
    monkeypatch.setattr(mx.fast, "rope", lambda *a, **k: used.append(lengths[-1]) or kernel(*a, **k))
    cache = model.make_cache()
    edges = [0, 5, 13, 14, 15, 20, 21, 22, 30]
    parts = [model(ids[:, a:b], cache=cache) for a, b in pairwise(edges)]
    assert mx.abs(mx.concatenate(parts, axis=1) - expected).max() < TOLERANCE
    assert lengths == edges[1:]
    assert {5, 13}.issubset(used)
    assert max(used) <= 16


def test_the_rotary_kernel_is_metals_up_to_so_many_positions_and_cudas_always(backend: str) -> None:
    least, most = device.METAL_ROPE_POSITIONS, 1 << 20
    expected = {"CPU": (False, False), "Metal": (True, False), "CUDA": (True, True)}[backend]
    assert (device.rotates_by_kernel(least), device.rotates_by_kernel(most)) == expected
    assert device.rotates_by_kernel(least + 1) == expected[1]


def test_what_the_sum_of_experts_is_normalized_by_stays_in_float32(tmp_path: Path) -> None:
    loaded, config = load_model(tiny_folder(tmp_path / "m"), dtype=mx.bfloat16)
    cast = make_model(config)
    cast.set_dtype(mx.bfloat16)
    for model in (loaded, cast, random_model(config, dtype=mx.bfloat16)):
        layers = model.model.layers
        for layer in layers[config.num_dense_layers :]:
            assert layer.post_mlp_layernorm.weight.dtype == layer.mlp.expert_bias.dtype == mx.float32
        for layer in layers[: config.num_dense_layers] if model is not loaded else ():
            assert layer.post_mlp_layernorm.weight.dtype == layer.pre_mlp_layernorm.weight.dtype == mx.bfloat16
        assert model(tokens(1, 4)).dtype == mx.bfloat16
