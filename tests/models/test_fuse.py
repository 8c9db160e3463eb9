"""Fused models compute what unfused ones do, and what cannot be fused exactly stays apart."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import device
from afmoe_mlx.checkpoint.quantized import is_quantizable
from afmoe_mlx.models import CausalLM, fuse, make_model, read_config
from helpers.checkpoints import golden, stacked
from helpers.tiny import ARCHITECTURES, tiny, tokens

TOLERANCE = 2e-5
WIDTHS = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "afmoe": WIDTHS | {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "lfm2_moe": WIDTHS | {"layer_types": ["full_attention", "conv"]},
}
AFFINE = {"group_size": 32, "bits": 4, "mode": "affine"}
PLAIN: dict[str, dict[str, Any]] = {
    **{f"{n} shared": {"num_shared_experts": n} for n in (0, 1, 2, 3)},
    "attention_bias": {"attention_bias": True},
    "all dense": {"num_dense_layers": 2},
    "one kv head": {"num_key_value_heads": 1},
}
Options = Callable[[str, nn.Module], Any]


def pair(model_type: str, options: Options | None = None, **changes: Any) -> tuple[CausalLM, CausalLM]:
    """The same model unfused and fused, quantized as `options` says of each path."""

    def chosen(path: str, module: nn.Module) -> Any:
        return options is not None and is_quantizable(path, module, 1) and options(path, module)

    models = [tiny(model_type, **SHAPES[model_type] | changes) for _ in range(2)]
    for model in models:
        nn.quantize(model, class_predicate=chosen)
    return models[0], fuse(models[1])


def assert_equal_logits(unfused: CausalLM, fused: CausalLM) -> None:
    for length in (3, 33):  # few rows and many go different ways
        ids = tokens(1, length)
        expected = unfused(ids)
        assert mx.abs(expected).max() > 0.5
        assert mx.abs(fused(ids) - expected).max() < TOLERANCE


def layer(model: CausalLM, index: int = 1) -> Any:
    return model.model.layers[index]


def names(module: nn.Module) -> set[str]:
    return {name for name, value in module.items() if isinstance(value, nn.Module) and not name.startswith("_")}


@pytest.mark.parametrize("change", PLAIN)
@pytest.mark.parametrize("mode", [None, "affine", "mxfp4"])
def test_every_shape_of_afmoe(change: str, mode: str | None) -> None:
    options = {"group_size": 32, "bits": 4, "mode": mode} if mode else None
    unfused, fused = pair("afmoe", (lambda *_: options) if options else None, **PLAIN[change])
    assert_equal_logits(unfused, fused)
    assert names(layer(fused).self_attn) == {"qkvg_proj", "o_proj", "qk_norm"}
    if change != "all dense":
        assert names(layer(fused).mlp) == {"router", "experts"}
        assert names(layer(fused).mlp.experts) == {"gate_up_proj", "down_proj"}
        count = 6 + PLAIN[change].get("num_shared_experts", 1)
        assert layer(fused).mlp.experts.down_proj.weight.shape[0] == count


@pytest.mark.parametrize("mode", [None, "affine", "mxfp8"])
def test_lfm2_moe(mode: str | None) -> None:
    options = {"group_size": 32, "bits": 8, "mode": mode} if mode else None
    unfused, fused = pair("lfm2_moe", (lambda *_: options) if options else None)
    assert_equal_logits(unfused, fused)
    assert "qkv_proj" in layer(fused, 0).self_attn
    assert "gate_up_proj" in layer(fused, 0).feed_forward
    assert "gate_up_proj" in layer(fused).feed_forward.switch_mlp


APART: dict[str, tuple[Options, set[str], set[str], set[str]]] = {
    # quantization of a path -> what is left in attention, the MLP and its experts
    "v in 8 bits": (
        lambda path, _: AFFINE | ({"bits": 8} if path.endswith("v_proj") else {}),
        {"q_proj", "k_proj", "v_proj", "gate_proj"},
        set(),
        {"gate_up_proj"},
    ),
    "v as it is": (
        lambda path, _: not path.endswith("v_proj") and AFFINE,
        {"q_proj", "k_proj", "v_proj", "gate_proj"},
        set(),
        {"gate_up_proj"},
    ),
    "up in 8 bits": (
        lambda path, _: AFFINE | ({"bits": 8} if path.endswith("up_proj") else {}),
        {"qkvg_proj"},
        set(),
        {"gate_proj", "up_proj"},
    ),
    "down in 8 bits": (
        lambda path, _: AFFINE | ({"bits": 8} if path.endswith("down_proj") else {}),
        {"qkvg_proj"},
        set(),
        {"gate_up_proj"},
    ),
    "shared in 8 bits": (
        lambda path, _: AFFINE | ({"bits": 8} if "shared" in path else {}),
        {"qkvg_proj"},
        {"shared_experts"},
        {"gate_up_proj"},
    ),
    "shared in mxfp8": (
        lambda path, _: {"group_size": 32, "bits": 8, "mode": "mxfp8"} if "shared" in path else AFFINE,
        {"qkvg_proj"},
        {"shared_experts"},
        {"gate_up_proj"},
    ),
    "shared as it is": (
        lambda path, _: "shared" not in path and AFFINE,
        {"qkvg_proj"},
        {"shared_experts"},
        {"gate_up_proj"},
    ),
    "experts alone": (
        lambda path, _: ".experts" in path and AFFINE,
        {"qkvg_proj"},
        {"shared_experts"},
        {"gate_up_proj"},
    ),
}


@pytest.mark.parametrize("case", APART)
def test_what_is_quantized_differently_stays_apart(case: str) -> None:
    options, attention, mlp, experts = APART[case]
    unfused, fused = pair("afmoe", options)
    assert_equal_logits(unfused, fused)
    norms = {"qk_norm"} if "qkvg_proj" in attention else {"q_norm", "k_norm"}
    assert names(layer(fused).self_attn) == attention | {"o_proj"} | norms
    assert names(layer(fused).mlp) == mlp | {"router", "experts"}
    assert names(layer(fused).mlp.experts) == experts | {"down_proj"}


@pytest.mark.parametrize(("group_size", "apart"), [(32, False), (64, True)])
@pytest.mark.parametrize("shared", [1, 2, 3])
def test_shared_experts_stay_apart_where_groups_straddle_them(group_size: int, apart: bool, shared: int) -> None:
    # a group of 64 columns would hold two experts of width 32: routed down is not quantized, two shared ones are
    def options(path: str, module: nn.Module) -> Any:
        return module.weight.shape[-1] % group_size == 0 and AFFINE | {"group_size": group_size}

    unfused, fused = pair("afmoe", options, num_shared_experts=shared)
    assert_equal_logits(unfused, fused)
    assert ("shared_experts" in layer(fused).mlp) == (apart and shared == 2)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_unfused_names_are_those_that_mlx_lm_stores(model_type: str) -> None:
    made = golden(f"{model_type}-base")
    expected = {name: tuple(tensor.shape) for name, tensor in stacked(made.tensors).items()}
    ours = {name: array.shape for name, array in tree_flatten(make_model(read_config(made.config)).parameters())}
    assert ours == expected


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_fusing_keeps_the_number_of_weights_in_products(model_type: str) -> None:
    def count(model: CausalLM) -> int:
        return sum(array.size for name, array in tree_flatten(model.parameters()) if "_proj" in name)

    unfused, fused = pair(model_type)
    assert count(unfused) == count(fused)


@pytest.mark.parametrize("score_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("shared", [1, 2])
def test_shared_experts_are_always_chosen_with_weight_one(score_func: str, bits: int | None, shared: int) -> None:
    models = [tiny("afmoe", **SHAPES["afmoe"] | {"score_func": score_func, "num_shared_experts": shared})
              for _ in range(2)]  # fmt: skip
    if bits:  # as mlx-lm's converter leaves routers
        for model in models:
            nn.quantize(model, 32, bits, class_predicate=lambda path, _: path.endswith("router.gate"))
    unfused, fused = models[0], fuse(models[1])
    assert_equal_logits(unfused, fused)
    moe = layer(fused).mlp
    weights, experts = moe.route(moe.router(mx.random.normal((50, 64))))
    is_shared = experts >= 6
    assert mx.all(is_shared.sum(axis=1) == shared)
    assert mx.all(mx.where(is_shared, weights, 1.0) == 1.0)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_fused_experts_go_on_from_an_unfused_cache(model_type: str) -> None:
    unfused, fused = pair(model_type)
    cache, ids = unfused.make_cache(), tokens(1, 12)
    expected = unfused(ids)
    unfused(ids[:, :8], cache=cache)
    assert mx.abs(fused(ids[:, 8:], cache=cache) - expected[:, 8:]).max() < TOLERANCE


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("is_cpu", [True, False])
def test_large_experts_stay_as_they_are_on_the_cpu_alone(
    model_type: str, is_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "FUSE_EXPERTS_UP_TO", 1000)
    monkeypatch.setattr(device, "is_cpu", lambda: is_cpu)
    shared = {"num_shared_experts": 1} if model_type == "afmoe" else {}
    unfused, fused = pair(model_type, **shared)
    block = layer(fused).mlp if model_type == "afmoe" else layer(fused).feed_forward
    experts = block.experts if "experts" in block else block.switch_mlp
    assert ("gate_up_proj" in experts) == (not is_cpu)
    assert ("shared_experts" in block) == (is_cpu and bool(shared))
    assert ("qkvg_proj" if model_type == "afmoe" else "qkv_proj") in layer(fused, 0).self_attn
    monkeypatch.undo()
    assert_equal_logits(unfused, fused)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_fusing_twice_is_fusing_once(model_type: str) -> None:
    model, ids = tiny(model_type, num_shared_experts=2) if model_type == "afmoe" else tiny(model_type), tokens(1, 9)
    expected = fuse(model)(ids)
    assert mx.array_equal(fuse(model)(ids), expected)
