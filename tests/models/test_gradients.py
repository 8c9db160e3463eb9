"""Gradients equal those that torch finds through Transformers' modules, for every configuration of grid.py."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from afmoe_mlx import load_model
from afmoe_mlx.models import CausalLM, moe, rope
from afmoe_mlx.models.linear import NVFP4_LARGEST, Linear, QuantizedLinear
from afmoe_mlx.models.moe import ExpertLinear, QuantizedExpertLinear
from helpers.checkpoints import write_golden
from helpers.gradients import SCALE, adapter, batches, difference, kept_gradients, sketch
from helpers.grid import GRID, TRACED
from helpers.tiny import ARCHITECTURES, tiny, tokens

Gradients = dict[str, np.ndarray]

TOLERANCE = 2e-5  # beside the norm of the tensor's gradient
# What has no gradient but rounding: a router of one expert a token, whose weight is 1 whatever it says, and what
# queries and keys are where there is one key. NOTHING: beside the norm of all gradients together.
WITHOUT = {
    "afmoe-top_1": r"\.router\.",
    "afmoe-one_expert": r"\.router\.",
    "lfm2_moe-top_1": r"\.feed_forward\.gate\.",
    "afmoe-window_1": r"layers\.[012]\.self_attn\.[qk]_",
}
NOTHING = 1e-6


def maps(model: CausalLM) -> dict[str, nn.Module]:
    """Every linear map of an unfused model, those of experts too."""
    kinds = Linear, QuantizedLinear, ExpertLinear, QuantizedExpertLinear
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


def adapt(model: CausalLM, *, dora: bool = False) -> dict[str, mx.array]:
    """Put an adapter beside every map, by DoRA where it is not of experts; its factors."""
    made = {}
    for path, module in maps(model).items():
        *outer, width = module.weight.shape
        shape = (*outer, width * 32 // module.bits if "scales" in module else width)
        module.lora_scale = SCALE
        for name, values in adapter(path, shape, dora=dora).items():
            made[name] = module[name.rpartition(".")[2]] = mx.array(values)
    return made


def loss_of(model: CausalLM, batch: tuple[Any, Any, Any]) -> Callable[[Mapping[str, mx.array]], mx.array]:
    """A model's in training, as a function of some of its arrays, which it keeps."""
    ids, mask, labels = (None if array is None else mx.array(array) for array in batch)

    def loss(arrays: Mapping[str, mx.array]) -> mx.array:
        model.update(tree_unflatten(list(arrays.items())))
        return model(ids, attention_mask=mask, labels=labels)[0]

    model.train()
    return loss


def gradients(model: CausalLM, arrays: dict[str, mx.array], batch: tuple[Any, Any, Any]) -> Gradients:
    """Those of a model in training by some of its arrays, which are afterwards what they were."""
    found = mx.grad(loss_of(model, batch))(arrays)
    model.update(tree_unflatten(list(arrays.items())))
    assert all(found[name].dtype == array.dtype for name, array in arrays.items())
    return {name: np.array(gradient.astype(mx.float32)) for name, gradient in found.items()}


def assert_kept(found: Gradients, name: str, kind: str) -> None:
    """They are those of the golden, tensor by tensor."""
    kept = kept_gradients(name, kind)
    biases = {key for key in found if key.endswith("expert_bias")}  # which move the choice alone
    assert found.keys() - biases == kept.keys()
    assert not any(found[key].any() for key in biases)
    norm = float(np.linalg.norm([values[0] for values in kept.values()]))
    for key, values in kept.items():
        if name in WITHOUT and re.search(WITHOUT[name], key):
            assert max(values[0], np.linalg.norm(found[key])) < NOTHING * norm, key
        else:
            assert difference(found[key], values) < TOLERANCE * values[0], key


def distance(found: Gradients, expected: Gradients) -> float:
    """The norm of the difference beside that of the whole."""
    norms = [[np.linalg.norm(found[key] - a), np.linalg.norm(a)] for key, a in expected.items()]
    return float(np.divide(*np.linalg.norm(norms, axis=0)))


def check(folder: Path, name: str, kinds: Collection[str], *, recomputes: bool = False) -> None:
    """The gradients of all weights for some of the batches, and of adapters at all maps."""
    model = load_model(write_golden(folder, name), fuse=False)[0]
    model.recomputes = recomputes
    made = batches(name)
    for kind in kinds:
        assert_kept(gradients(model, dict(tree_flatten(model.parameters())), made[kind]), name, kind)
    for kind in ("adapters", "dora") if name in TRACED else ("adapters",):
        assert_kept(gradients(model, adapt(model, dora=kind == "dora"), made["padded"]), name, kind)


@pytest.mark.parametrize("name", GRID)
def test_of_all_weights_and_of_adapters(tmp_path: Path, name: str) -> None:
    check(tmp_path, name, batches(name))


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("numbered", [0, 10**9], ids=["", "numbered"])
def test_whether_or_not_rows_are_sorted_by_expert(
    tmp_path: Path, name: str, numbered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As middling numbers of tokens and as few run, which these are too many for."""
    monkeypatch.setattr(moe, "sorts", lambda *_: False)
    monkeypatch.setattr(moe, "NUMBERED", numbered)
    check(tmp_path, name, ["padded"])


@pytest.mark.parametrize("name", TRACED)
def test_whether_or_not_activations_are_computed_again(tmp_path: Path, name: str) -> None:
    check(tmp_path, name, ["padded", "long"], recomputes=True)


@pytest.mark.parametrize("name", ["afmoe-yarn", "lfm2_moe-yarn"])
def test_whether_or_not_positions_are_rotated_by_a_kernel(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rope, "rotates_by_kernel", lambda _: True)
    check(tmp_path, name, ["padded"])


WIDE = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64}
FORMATS: list[dict[str, Any]] = [
    *({"mode": "affine", "group_size": 32, "bits": bits} for bits in (2, 3, 4, 5, 6, 8)),
    {"mode": "mxfp4", "group_size": 32, "bits": 4},
    {"mode": "nvfp4", "group_size": 16, "bits": 4},
    {"mode": "nvfp4", "group_size": 16, "bits": 4, "global_scale": True},
    {"mode": "mxfp8", "group_size": 32, "bits": 8},
]
IDS = tokens(2, 40)  # as many as are sorted by expert


def quantized(model: CausalLM, how: dict[str, Any]) -> CausalLM:
    """The model with all its maps quantized."""
    nn.quantize(model, class_predicate=lambda _, module: isinstance(module, Linear | ExpertLinear) and how)
    return model


def dequantized(model: CausalLM, twin: CausalLM) -> CausalLM:
    """The twin with plain maps of the same weights."""
    plain = maps(twin)
    for path, m in maps(model).items():
        weight = mx.dequantize(m.weight, m.scales, m.get("biases"), m.group_size, m.bits, m.mode, dtype=mx.float32)
        if "global_scale" in m:
            weight = weight * mx.expand_dims(m.global_scale / NVFP4_LARGEST, range(1, weight.ndim))
        plain[path].weight = weight
    return twin


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("how", FORMATS, ids=lambda how: "-".join(map(str, how.values())))
def test_of_adapters_beside_quantized_weights_as_beside_plain_ones(model_type: str, how: dict[str, Any]) -> None:
    """Of two layers, after which the rounding of float32 sums is still below what is asserted."""
    kinds = {"afmoe": ["sliding_attention", "full_attention"], "lfm2_moe": ["conv", "full_attention"]}
    shape = WIDE | {"num_hidden_layers": 2, "layer_types": kinds[model_type]}
    model = quantized(tiny(model_type, **shape), how)
    twin = dequantized(model, tiny(model_type, **shape))
    found, expected = (gradients(m, adapt(m), (IDS, None, IDS)) for m in (model, twin))
    assert distance(found, expected) < 2e-6
    assert all(distance({key: found[key]}, {key: expected[key]}) < 5e-6 for key in expected)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("how", [None, FORMATS[2], FORMATS[8]], ids=["plain", "affine", "nvfp4"])
def test_a_step_is_one_graph(model_type: str, how: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training the host reads nothing on the way, and experts are run as nowhere in inference, on any device."""
    for name in ("dequantizes", "dequantizes_experts"):
        monkeypatch.setattr(moe, name, lambda rows: pytest.fail(f"{rows} rows are run as in inference"))
    model = tiny(model_type, **WIDE)
    model = quantized(model, how) if how else model
    arrays = adapt(model)
    # traced alone: to run what is compiled would take the C++ compiler
    assert mx.compile(mx.grad(loss_of(model, (IDS, None, IDS))))(arrays).keys() == arrays.keys()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("how", [None, FORMATS[2]], ids=["plain", "quantized"])
def test_in_bfloat16(model_type: str, how: dict[str, Any] | None) -> None:
    """To its rounding; all experts are chosen, for a choice on the edge would fall otherwise."""
    shape, ids = WIDE | {"num_experts_per_tok": 6}, IDS[:, :16]
    model, twin = tiny(model_type, **shape), tiny(model_type, **shape)
    model = quantized(model, how) if how else model
    twin = dequantized(model, twin) if how else twin
    model.set_dtype(mx.bfloat16)
    found, expected = (gradients(m, adapt(m), (ids, None, ids)) for m in (model, twin))
    assert distance(found, expected) < 0.1


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_row_of_padding_alone_changes_none(model_type: str) -> None:
    model = tiny(model_type)
    arrays = dict(tree_flatten(model.parameters()))
    alone = gradients(model, arrays, (IDS, None, IDS))
    rows = mx.concatenate([IDS, mx.zeros_like(IDS)[:1]])
    real = mx.concatenate([mx.ones_like(IDS), mx.zeros_like(IDS)[:1]])
    beside = gradients(model, arrays, (rows, real, mx.where(real == 1, rows, -100)))
    assert distance(beside, alone) < 5e-6


def test_what_is_kept_of_a_gradient_tells_when_one_element_is_off() -> None:
    gradient = np.random.default_rng(0).standard_normal((30, 7))
    kept, norm = sketch(gradient), np.linalg.norm(gradient)
    for index in np.ndindex(gradient.shape):
        other = gradient.copy()
        other[index] += 5 * TOLERANCE * norm
        assert difference(other, kept) > TOLERANCE * kept[0]
