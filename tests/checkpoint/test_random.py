"""Random models have the parts, dtypes and memory of real ones, and behave like a model rather than like noise."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import load_model
from afmoe_mlx.checkpoint.random import STD, random_model, save_random
from afmoe_mlx.errors import InputError
from afmoe_mlx.models import Trace, read_config
from afmoe_mlx.models.shapes import SHAPES, shape
from helpers.grid import AFMOE, LFM2

WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "num_experts": 16}
RAWS = {
    "afmoe": {"model_type": "afmoe"} | AFMOE | WIDTHS,
    "lfm2_moe": {"model_type": "lfm2_moe"} | LFM2 | WIDTHS,
}
MODES = [("affine", bits, 64) for bits in (2, 3, 4, 5, 6, 8)] + [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)]
IDS = mx.arange(24)[None]


def parameters(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def nbytes(module: Any) -> int:
    return sum(array.nbytes for array in parameters(module).values())


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_cut_to_its_first_layers(name: str) -> None:
    whole, cut = read_config(shape(name)), read_config(shape(name, layers=5))
    assert cut.layer_types == whole.layer_types[:5]
    assert cut.num_dense_layers == min(whole.num_dense_layers, 5)
    assert read_config(shape(name, layers=1)).num_dense_layers == 1
    assert read_config(shape(name, layers=whole.num_hidden_layers)) == whole


def test_an_unknown_shape_is_answered_with_those_there_are() -> None:
    with pytest.raises(InputError, match=", ".join(SHAPES)):
        shape("trinity-huge")


@pytest.mark.parametrize("layers", [0, -1, 57, True])
def test_layers_that_a_shape_does_not_have_are_refused(layers: int) -> None:
    with pytest.raises(InputError, match="expected 1 to 56"):
        shape("trinity-nano", layers=layers)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("model_type", RAWS)
def test_the_weights_are_those_of_a_converted_model(model_type: str, fuse: bool, tmp_path: Path) -> None:
    save_random(tmp_path, RAWS[model_type], bits=4)
    real = parameters(load_model(tmp_path, fuse=fuse)[0])
    made = parameters(random_model(read_config(RAWS[model_type]), bits=4, fuse=fuse))
    assert {k: (a.shape, a.dtype) for k, a in made.items()} == {k: (a.shape, a.dtype) for k, a in real.items()}


@pytest.mark.parametrize("model_type", RAWS)
def test_what_is_saved_computes_what_was_made(model_type: str, tmp_path: Path) -> None:
    save_random(tmp_path, RAWS[model_type], bits=4, dtype=mx.float32, seed=3)
    made = random_model(read_config(RAWS[model_type]), bits=4, dtype=mx.float32, seed=3)
    assert mx.allclose(load_model(tmp_path)[0](IDS), made(IDS), atol=1e-6)


@pytest.mark.parametrize(("mode", "bits", "group_size"), MODES)
def test_quantized_weights_are_finite_and_spread_like_unquantized_ones(mode: str, bits: int, group_size: int) -> None:
    model = random_model(read_config(RAWS["afmoe"]), bits=bits, group_size=group_size, mode=mode)
    for _, module in model.named_modules():
        if "scales" in module:
            options = {"group_size": group_size, "bits": bits, "mode": mode}
            values = mx.dequantize(module.weight, module.scales, module.get("biases"), **options).astype(mx.float32)
            assert 0.8 * STD < values.std().item() < 1.3 * STD
            assert abs(values.mean().item()) < 0.1 * STD
    assert mx.isfinite(model(IDS)).all()


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("model_type", RAWS)
def test_routers_stay_unquantized_and_choose_many_experts(model_type: str, bits: int | None) -> None:
    model = random_model(read_config(RAWS[model_type]), bits=bits)
    trace = Trace()
    model(IDS, trace=trace)
    for chosen in trace.selected_experts:
        assert len(set(chosen.flatten().tolist())) > model.config.num_experts // 2
    routers = [name for name in parameters(model) if name.endswith(("router.gate.scales", "feed_forward.gate.scales"))]
    assert not routers


def test_the_seed_alone_decides_the_weights() -> None:
    config = read_config(RAWS["afmoe"])
    mx.random.seed(1)
    first = parameters(random_model(config, bits=4, seed=5))
    mx.random.seed(2)
    again, other = (parameters(random_model(config, bits=4, seed=seed)) for seed in (5, 6))
    name = "model.layers.2.mlp.experts.down_proj.weight"
    assert all(mx.array_equal(array, again[key]) for key, array in first.items())
    assert not mx.array_equal(first[name], other[name])


@pytest.mark.parametrize("bits", [None, 4])
def test_peak_memory_is_the_model_and_about_one_layer(bits: int | None) -> None:
    raw = RAWS["afmoe"] | {"num_hidden_layers": 12, "hidden_size": 128, "num_experts": 32}
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = random_model(read_config(raw), bits=bits)
    peak = mx.get_peak_memory() - before
    layer = max(nbytes(layer) for layer in model.model.layers)
    assert peak < nbytes(model) + 1.5 * layer


def test_a_quantization_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match=r"^bits is 7: expected 2, 3, 4, 5, 6, 8 with mode affine"):
        random_model(read_config(RAWS["afmoe"]), bits=7)


def test_progress_counts_the_layers() -> None:
    seen: list[tuple[int, int]] = []
    random_model(read_config(RAWS["afmoe"]), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 4) for i in range(5)]


@pytest.mark.parametrize("model_type", RAWS)
def test_stored_biases_of_routers_are_float32_and_all_else_in_the_dtype(model_type: str, tmp_path: Path) -> None:
    save_random(tmp_path, RAWS[model_type], dtype=mx.bfloat16)
    dtypes = {name: array.dtype for name, array in mx.load(str(tmp_path / "model.safetensors")).items()}
    assert {dtype for name, dtype in dtypes.items() if name.endswith("expert_bias")} == {mx.float32}
    assert {dtype for name, dtype in dtypes.items() if not name.endswith("expert_bias")} == {mx.bfloat16}
