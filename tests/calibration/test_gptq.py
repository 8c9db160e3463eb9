"""Quantized weights chosen by their inputs: packed as MLX packs them, and never worse than plain rounding."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.calibration.gptq import Curvature, quantize_gptq
from afmoe_mlx.calibration.packing import pack
from afmoe_mlx.calibration.scales import Quantized, quantize_weighted

BITS = (2, 3, 4, 5, 6, 8)
OPTIONS = {"group_size": 32, "bits": 3, "dtype": mx.bfloat16}


def plain(quantized: Quantized, options: dict) -> mx.array:
    scales, biases = quantized.scales.astype(mx.float32), quantized.biases.astype(mx.float32)
    return mx.dequantize(quantized.weight, scales, biases, options["group_size"], options["bits"])


def rounded(weight: mx.array, options: dict) -> mx.array:
    """As `mx.quantize` rounds a weight stored in `dtype`."""
    parts = mx.quantize(weight.astype(options["dtype"]), options["group_size"], options["bits"])
    return plain(Quantized(*parts), options)


def normal(seed: int, *shape: int, spread: float = 1.0) -> mx.array:
    """Random values, stored exactly in bfloat16."""
    values = np.random.default_rng(seed).standard_normal(shape) * spread
    return mx.array(values.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32)


def inputs(seed: int, count: int, width: int) -> mx.array:
    """Correlated inputs (N, in) whose channels differ in size, as hidden states do."""
    mixed = normal(seed, count, width // 4) @ normal(seed + 1, width // 4, width) + 0.3 * normal(seed + 2, count, width)
    return mixed * mx.exp(normal(seed + 3, width))


def curvature(x: mx.array) -> Curvature:
    return Curvature.from_moments((x.T @ x)[None], x.shape[0])


def output_error(x: mx.array, weight: mx.array, approximate: mx.array) -> float:
    return mx.square(x @ (weight - approximate).swapaxes(-1, -2)).sum().item()


@settings(max_examples=30, deadline=None)
@given(bits=st.sampled_from(BITS), rows=st.integers(1, 5), groups=st.integers(1, 4), seed=st.integers(0, 1000))
def test_packed_codes_mean_the_same_codes_to_mlx(bits: int, rows: int, groups: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, groups * 32)).astype(np.uint8)
    one = mx.ones((rows, groups))
    assert np.array_equal(np.array(mx.dequantize(pack(mx.array(codes), bits), one, 0 * one, 32, bits)), codes)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    group_size=st.sampled_from((32, 64)),
    seed=st.integers(0, 1000),
    spread=st.sampled_from((1e-6, 0.02, 30.0)),
    dtype=st.sampled_from((mx.bfloat16, mx.float16, mx.float32)),
    alike=st.booleans(),
)
def test_the_weighted_error_is_never_above_that_of_plain_rounding(
    bits: int, group_size: int, seed: int, spread: float, dtype: mx.Dtype, alike: bool
) -> None:
    options = {"bits": bits, "group_size": group_size, "dtype": dtype}
    weight = normal(seed, 2, 6, 128, spread=spread).astype(dtype).astype(mx.float32)
    importance = None if alike else mx.square(normal(seed + 1, 2, 128))
    ours = plain(quantize_weighted(weight, importance, **options), options)
    weights = 1 if importance is None else importance[:, None] + 1e-6 * importance.mean()
    errors = [
        (weights * mx.square(weight - approximate)).reshape(2, 6, -1, group_size).sum(axis=-1)
        for approximate in (ours, rounded(weight, options))
    ]
    assert (errors[0] <= errors[1] * 1.001 + 1e-12 * spread**2).all().item()


@pytest.mark.parametrize("weight", [mx.zeros((1, 3, 32)), mx.full((1, 3, 32), 0.5), mx.full((1, 3, 32), -1e-20)])
def test_weights_that_are_all_alike_stay_what_they_are(weight: mx.array) -> None:
    found = plain(quantize_weighted(weight, None, **OPTIONS), OPTIONS)
    assert mx.allclose(found, weight, atol=1e-7).item()


def test_inputs_that_tell_channels_apart_in_nothing_give_the_scales_method() -> None:
    weight = normal(0, 2, 8, 64)
    curved = Curvature.from_moments(mx.broadcast_to(mx.eye(64), (2, 64, 64)), 9)
    by_gptq, by_scales = quantize_gptq(weight, curved, **OPTIONS), quantize_weighted(weight, None, **OPTIONS)
    assert mx.array_equal(by_gptq.weight, by_scales.weight).item()
    assert mx.array_equal(by_gptq.scales, by_scales.scales).item()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", range(3))
def test_each_method_leaves_less_output_error_than_the_one_before(bits: int, seed: int) -> None:
    options = OPTIONS | {"bits": bits}
    x, weight = inputs(seed, 400, 128), normal(seed + 9, 1, 24, 128)
    by_scales = plain(quantize_weighted(weight, mx.square(x).mean(axis=0)[None], **options), options)
    by_gptq = plain(quantize_gptq(weight, curvature(x), **options), options)
    errors = [output_error(x, weight, w) for w in (rounded(weight, options), by_scales, by_gptq)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.5 * errors[0]


def test_every_weight_of_a_stack_is_quantized_as_it_would_be_alone() -> None:
    weight, x = normal(0, 3, 8, 64), [inputs(seed, 100, 64) for seed in (1, 5, 9)]
    moments = mx.stack([each.T @ each for each in x])
    whole = quantize_gptq(weight, Curvature.from_moments(moments, 100), **OPTIONS)
    for i in range(3):
        alone = quantize_gptq(weight[i : i + 1], curvature(x[i]), **OPTIONS)
        difference = mx.abs(plain(whole, OPTIONS)[i] - plain(alone, OPTIONS)[0])
        assert (difference < 1e-4).mean().item() > 0.99  # a tie may be rounded either way


@pytest.mark.parametrize("count", [0, 1])
def test_channels_that_no_input_used_are_rounded_and_finite(count: int) -> None:
    x = mx.zeros((count, 64)) if count == 0 else mx.concatenate([normal(1, 1, 32), mx.zeros((1, 32))], axis=-1)
    weight = normal(0, 1, 4, 64)
    found = plain(quantize_gptq(weight, Curvature.from_moments((x.T @ x)[None], count), **OPTIONS), OPTIONS)
    assert mx.isfinite(found).all().item()
    assert mx.abs(found - weight).max().item() < 1.0
