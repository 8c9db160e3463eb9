"""Quantized products give the same whichever way they are computed."""

from functools import reduce

import mlx.core as mx
import mlx.nn as nn
import pytest

from afmoe_mlx import device
from afmoe_mlx.models import linear
from afmoe_mlx.models.linear import Embedding, Linear, QuantizedLinear
from afmoe_mlx.models.moe import ExpertLinear, route
from helpers.tiny import tiny, tokens

MODES = [("affine", 32, bits) for bits in (2, 3, 4, 5, 6, 8)] + [("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)]


def kernel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEQUANTIZE_FROM", "SLOWLY_DEQUANTIZE_FROM"):
        monkeypatch.setattr(device, name, 10**9)


@pytest.mark.parametrize(("mode", "group_size", "bits"), MODES)
@pytest.mark.parametrize("rows", [1, 5, 8, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_few_rows_and_many_give_what_the_kernel_gives(
    mode: str, group_size: int, bits: int, rows: int, bias: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "has_fast_blas", lambda: fast)
    layer = Linear(64, 48, bias=bias).to_quantized(group_size, bits, mode)
    layer.eval()
    x = mx.random.normal((1, rows, 64), key=mx.random.key(rows))
    found = layer(x)
    kernel_only(monkeypatch)
    assert isinstance(layer, QuantizedLinear)
    assert found.shape == (1, rows, 48)
    assert mx.allclose(found, layer(x), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_bias_is_added_to_the_product(rows: int) -> None:
    layer = Linear(64, 48, bias=True)
    layer.bias = mx.arange(48.0)
    quantized = layer.to_quantized(32, 8)
    quantized.eval()
    x = mx.random.normal((1, rows, 64), key=mx.random.key(rows))
    weight = mx.dequantize(quantized.weight, quantized.scales, quantized.biases, 32, 8)
    assert mx.allclose(quantized(x), x @ weight.T + mx.arange(48.0), atol=1e-4)


@pytest.mark.parametrize(
    ("score_func", "scores"),
    [("softmax", [1 / 8, 2 / 8, 4 / 8, 1 / 8]), ("sigmoid", [1 / 2, 2 / 3, 4 / 5, 1 / 2])],
)
def test_a_router_scores_as_it_is_told(score_func: str, scores: list[float]) -> None:
    logits = mx.log(mx.array([[1.0, 2.0, 4.0, 1.0]]))
    weights, experts = route(logits, None, k=2, score_func=score_func, normalize=False, eps=0.0, scale=3.0)
    found = dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True))
    assert found == pytest.approx({1: 3 * scores[1], 2: 3 * scores[2]})


def test_a_large_weight_is_dequantized_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Embedding(100, 64).to_quantized(32, 4)
    head.eval()
    x = mx.random.normal((9, 64))
    whole = head.as_linear(x)
    monkeypatch.setattr(linear, "PIECE", 64 * 7)
    assert mx.allclose(head.as_linear(x), whole, atol=1e-6)


@pytest.mark.parametrize(("mode", "group_size", "bits"), MODES)
def test_rows_in_order_of_their_experts_give_what_the_kernel_gives(
    mode: str, group_size: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked = ExpertLinear(6, 64, 32)
    stacked.weight = mx.random.normal(stacked.weight.shape) * 0.1
    layer = stacked.to_quantized(group_size, bits, mode)
    layer.eval()
    experts = mx.array([0] * 5 + [2] * 1 + [3] * 9 + [5] * 2, mx.uint32)
    x = mx.random.normal((17, 1, 64))
    found = layer(x, experts, ordered=True)
    kernel_only(monkeypatch)
    assert mx.allclose(found, layer(x, experts, ordered=True), atol=1e-5)


@pytest.mark.parametrize(("mode", "group_size", "bits"), MODES)
@pytest.mark.parametrize("piece", [1 << 24, 64 * 7])
def test_gradients_in_training_are_those_of_the_kernel(
    mode: str, group_size: int, bits: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the input, and by scales and biases where they are numbers to learn."""
    monkeypatch.setattr(linear, "PIECE", piece)
    layer = Linear(64, 48, bias=False).to_quantized(group_size, bits, mode)
    layer.train()
    x, weights = (mx.random.normal((2, 10, n), key=mx.random.key(n)) for n in (64, 48))
    learned = {name: layer[name] for name in ("scales", "biases") if mode == "affine"}

    def gradients() -> list[mx.array]:
        def loss(x: mx.array, learned: dict[str, mx.array]) -> mx.array:
            layer.update(learned)
            return (layer(x) * weights).sum()

        of_x, of_learned = mx.grad(loss, argnums=(0, 1))(x, learned)
        layer.update(learned)
        return [of_x, *of_learned.values()]

    found = gradients()
    kernel_only(monkeypatch)
    for gradient, expected in zip(found, gradients(), strict=True):
        assert mx.linalg.norm(gradient - expected) < 2e-6 * mx.linalg.norm(expected)


def test_no_dequantized_weight_is_kept_for_a_gradient() -> None:
    """A long chain of maps takes far less than all of their plain weights, however far MLX runs ahead of its work."""
    layers = [Linear(512, 512, bias=False).to_quantized(64, 4) for _ in range(64)]
    for layer in layers:
        layer.train()
    x = mx.ones((8, 512))
    mx.eval(x, [layer.parameters() for layer in layers])
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(lambda x: reduce(lambda h, layer: layer(h), layers, x).sum())(x))
    assert mx.get_peak_memory() - held < 0.5 * len(layers) * 512 * 512 * mx.float32.size


@pytest.mark.parametrize("model_type", ["afmoe", "lfm2_moe"])
def test_gradients_pass_through_quantized_layers_in_training(model_type: str) -> None:
    model, ids = tiny(model_type, hidden_size=64, moe_intermediate_size=32, intermediate_size=64), tokens(2, 40)
    nn.quantize(model, 32, 4, class_predicate=lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % 32 == 0)
    model.train()
    norm = model.model.layers[0]
    name = "input_layernorm" if model_type == "afmoe" else "operator_norm"

    def loss(weight: mx.array) -> mx.array:
        norm[name].weight = weight
        return model(ids, labels=ids)[0]

    gradient = mx.grad(loss)(norm[name].weight)
    assert mx.abs(gradient).max() > 0
