"""Every value of a config that cannot be is an error on one line that names its key, what was found and expected."""

from pathlib import Path

import mlx.core as mx
import pytest

from afmoe_mlx import load_model
from afmoe_mlx.errors import CheckpointError, ConfigError
from helpers.damage import (
    LINEAR,
    LLAMA3,
    ROPE,
    TYPES,
    WEIGHTS,
    YARN,
    Case,
    cases,
    check_convert,
    check_generate,
    check_load,
    config,
    edit,
    one_of_each,
    quantized,
    retype,
)

NUMBERS: dict[str, Case] = {
    "heads": (config(num_key_value_heads=3), ConfigError, ("num_attention_heads is 4", "num_key_value_heads 3")),
    "top-k": (config(num_experts_per_tok=7), ConfigError, ("num_experts_per_tok is 7", "at most num_experts, 6")),
    "window -1": (config(sliding_window=-1), ConfigError, ("sliding_window is -1", "1 or more")),
    "window 0": (config(sliding_window=0), ConfigError, ("sliding_window is 0", "1 or more")),
    "no window": (config(sliding_window=None), ConfigError, ("sliding_window is None", "1 or more")),
    "three types": (config(layer_types=TYPES[:3]), ConfigError, ("layer_types has 3", "num_hidden_layers, 4")),
    "unknown type": (config(layer_types=[*TYPES[:3], "mamba"]), ConfigError, ("'mamba'", "sliding_attention")),
    "types of the other": (config(layer_types=["conv"] * 4), ConfigError, ("layer_types has 'conv'", "sliding")),
    "types not a list": (config(layer_types="full_attention"), ConfigError, ("layer_types is 'full", "list of names")),
    "types of numbers": (config(layer_types=[1, 2, 3, 4]), ConfigError, ("layer_types is [1, 2", "list of names")),
    "dense 5": (config(num_dense_layers=5), ConfigError, ("num_dense_layers is 5", "num_hidden_layers 4")),
    "dense -1": (config(num_dense_layers=-1), ConfigError, ("num_dense_layers is -1", "between 0")),
    "odd head": (config(head_dim=7), ConfigError, ("head_dim is 7", "even")),
    "shared -1": (config(num_shared_experts=-1), ConfigError, ("num_shared_experts is -1", "0 or more")),
    "no LFM2 types": (config("lfm2_moe-base", layer_types=None), ConfigError, ("layer_types is missing",)),
    "no LFM2 key-value heads": (
        config("lfm2_moe-base", num_key_value_heads=None),
        ConfigError,
        ("num_key_value_heads is None", "1 or more"),
    ),
    "no convolution": (config("lfm2_moe-base", conv_L_cache=0), ConfigError, ("conv_L_cache is 0", "1 or more")),
    "full_attn_idxs is a number": (
        config("lfm2_moe-base", layer_types=None, full_attn_idxs=3),
        ConfigError,
        ("full_attn_idxs is 3", "list"),
    ),
    "full_attn_idxs, absurd layers": (
        config("lfm2_moe-base", layer_types=None, full_attn_idxs=[1], num_hidden_layers=10**7),
        ConfigError,
        ("num_hidden_layers is 10000000",),
    ),
    **{
        f"{name} {value!r}": (config(**{name: value}), ConfigError, (f"{name} is ", "expected"))
        for name in ("hidden_size", "num_hidden_layers", "num_experts", "vocab_size", "num_attention_heads", "head_dim")
        for value in ("32", True, 32.5, [32], {}, 0, -32, 10**12, 10**400, -(10**400))
    },
    "null hidden size": (config(hidden_size=None), ConfigError, ("hidden_size is None", "expected int")),
    "more layers than fit": (
        config(num_hidden_layers=5000, layer_types=None),
        CheckpointError,
        ("tensors", "num_hidden_layers 5000"),
    ),
    "absurd period": (
        config(layer_types=None, global_attn_every_n_layers=10**12),
        ConfigError,
        ("global_attn_every_n_layers",),
    ),
}
MEANINGS: dict[str, Case] = {
    "unknown model": (config(model_type="llama"), ConfigError, ("model_type is 'llama'", "afmoe, lfm2_moe")),
    "no model_type": (config(model_type=...), ConfigError, ("no model_type", "afmoe, lfm2_moe")),
    "model_type is a list": (config(model_type=["afmoe"]), ConfigError, ("model_type is ['afmoe']", "afmoe, lfm2_moe")),
    "score_func": (config(score_func="tanh"), ConfigError, ("score_func is 'tanh'", "sigmoid, softmax")),
    "score_func 3": (config(score_func=3), ConfigError, ("score_func is 3",)),
    "hidden_act": (config(hidden_act="swish2"), ConfigError, ("hidden_act is 'swish2'", "silu, gelu")),
    "LFM2 hidden_act": (config("lfm2_moe-base", hidden_act="gelu"), ConfigError, ("hidden_act is 'gelu'", "'silu'")),
    "groups": (config(n_group=2), ConfigError, ("n_group is 2", "1")),
    "top groups": (config(topk_group=[2]), ConfigError, ("topk_group is [2]", "1")),
    "per layer": (config(per_layer_config={"0": {"sliding_window": 4}}), ConfigError, ("per_layer_config",)),
    "not causal": (config(is_causal=False), ConfigError, ("is_causal is False", "True")),
    "a sentence": (config(hidden_act="x" * 10**6), ConfigError, ("hidden_act is 'xxx",)),
    "unknown rope": (config(rope_parameters={"rope_type": "magic"}), ConfigError, ("rope_type is 'magic'", "yarn")),
    "dynamic": (config(rope_parameters={"rope_type": "dynamic", "factor": 2}), ConfigError, ("'dynamic'", "default")),
    "longrope": (config(rope_parameters={"rope_type": "longrope"}), ConfigError, ("'longrope'", "default, linear")),
    "older unknown": (config(rope_parameters=..., rope_scaling={"type": "su"}), ConfigError, ("rope_type is 'su'",)),
    "rope_type a list": (config(rope_parameters={"rope_type": ["yarn"]}), ConfigError, ("rope_type is ['yarn']",)),
    "rope a string": (config(rope_parameters="yarn"), ConfigError, ("rope_parameters is 'yarn'", "an object")),
    "rope nested": (config(rope_parameters={"full_attention": ROPE}), ConfigError, ("nested under 'full_attention'",)),
    "partial": (
        config(rope_parameters=ROPE | {"partial_rotary_factor": 0.5}),
        ConfigError,
        ("partial_rotary_factor is 0.5",),
    ),
    "partial, older": (config(partial_rotary_factor=0.25), ConfigError, ("partial_rotary_factor is 0.25", "1.0")),
    "linear, no factor": (config(rope_parameters=LINEAR), ConfigError, ("linear", "factor")),
    "llama3, no factor": (config(rope_parameters=LLAMA3 | {"factor": None}), ConfigError, ("llama3", "factor")),
    "llama3, no low": (config(rope_parameters=LLAMA3 | {"low_freq_factor": None}), ConfigError, ("low_freq_factor",)),
    "llama3, low 0": (config(rope_parameters=LLAMA3 | {"low_freq_factor": 0}), ConfigError, ("low_freq_factor is 0",)),
    "llama3, low 4": (config(rope_parameters=LLAMA3 | {"low_freq_factor": 4}), ConfigError, ("low_freq_factor is 4",)),
    "llama3, original -1": (
        config(rope_parameters=LLAMA3 | {"original_max_position_embeddings": -1}),
        ConfigError,
        ("original_max_position_embeddings is -1", "more than 0"),
    ),
    "yarn, original a string": (
        config(rope_parameters=YARN | {"factor": None, "original_max_position_embeddings": "128"}),
        ConfigError,
        ("original_max_position_embeddings is '128'", "a number"),
    ),
    "yarn, theta 1": (config(rope_parameters=YARN | {"rope_theta": 1}), ConfigError, ("rope_theta is 1",)),
    "yarn, beta -1": (
        config(rope_parameters=YARN | {"beta_slow": -1}),
        ConfigError,
        ("beta_slow is -1", "more than 0"),
    ),
    "yarn, beta small": (config(rope_parameters=YARN | {"beta_slow": 1e-320}), ConfigError, ("beta_slow is 1e-320",)),
    "yarn, mscale -1": (config(rope_parameters=YARN | {"mscale_all_dim": -1}), ConfigError, ("mscale_all_dim is -1",)),
    "yarn, truncate 1": (
        config(rope_parameters=YARN | {"truncate": 1}),
        ConfigError,
        ("truncate is 1", "true or false"),
    ),
    "no positions": (
        config(max_position_embeddings=0, rope_parameters=YARN),
        ConfigError,
        ("max_position_embeddings is 0",),
    ),
    **{
        f"theta {value!r}": (config(rope_parameters=ROPE | {"rope_theta": value}), ConfigError, ("rope_theta is",))
        for value in ("1e4", True, 0, -1, [1], float("nan"), 10**400)
    },
    "older theta": (config(rope_parameters=..., rope_theta="1e4"), ConfigError, ("rope_theta is '1e4'", "a number")),
}
QUANTIZED: dict[str, Case] = {
    "bits 7": (config(quantization={"bits": 7, "group_size": 64}), ConfigError, ("quantization.bits is 7", "2, 3, 4")),
    "group 48": (config(quantization={"bits": 4, "group_size": 48}), ConfigError, ("group_size is 48", "32, 64, 128")),
    "mode": (config(quantization={"mode": "q4_k_m"}), ConfigError, ("quantization.mode is 'q4_k_m'", "affine")),
    "mode a list": (config(quantization={"mode": ["affine"]}), ConfigError, ("quantization.mode is ['affine']",)),
    "bits of mxfp4": (
        config(quantization={"mode": "mxfp4", "bits": 8}),
        ConfigError,
        ("bits is 8", "4 with mode mxfp4"),
    ),
    "bits a string": (config(quantization={"bits": "4"}), ConfigError, ("quantization.bits is '4'",)),
    "not an object": (config(quantization=4), ConfigError, ("quantization is 4", "an object")),
    "gptq": (config(quantization_config={"quant_method": "gptq"}), ConfigError, ("quant_method is 'gptq'", "MLX")),
    "no scales": (config(quantization=..., quantization_config="awq"), ConfigError, ("quantization is 'awq'",)),
    "said to be plain": (
        quantized(
            lambda folder: edit(folder, lambda raw: [raw.pop(k) for k in ("quantization", "quantization_config")])
        ),
        CheckpointError,
        ("unexpected", ".scales"),
    ),
    "other bits": (
        quantized(lambda folder: edit(folder, lambda raw: raw["quantization"].update(bits=8))),
        CheckpointError,
        (WEIGHTS, ".weight has shape", "expected"),
    ),
    "other groups": (
        quantized(lambda folder: edit(folder, lambda raw: raw["quantization"].update(group_size=64))),
        ConfigError,
        ("group_size 64", "expected a divisor of its width 32"),
    ),
    "other mode": (
        quantized(lambda folder: edit(folder, lambda raw: raw["quantization"].update(mode="mxfp4"))),
        CheckpointError,
        ("unexpected", ".biases"),
    ),
    "an override of 9 bits": (
        quantized(lambda folder: edit(folder, lambda raw: raw["quantization"].update({"lm_head": {"bits": 9}}))),
        ConfigError,
        ("quantization.lm_head.bits is 9",),
    ),
    "an override of nothing": (
        quantized(lambda folder: edit(folder, lambda raw: raw["quantization"].update({"lm_head": "4"}))),
        ConfigError,
        ("quantization.lm_head is '4'", "an object, true or false"),
    ),
    "an override to plain": (
        quantized(lambda folder: edit(folder, lambda raw: raw["quantization"].update({"lm_head": False}))),
        ConfigError,
        ("lm_head as unquantized",),
    ),
    "floats for packed": (
        quantized(retype("lm_head.weight", mx.float32)),
        CheckpointError,
        (WEIGHTS, "lm_head.weight is 'F32'", "expected U32"),
    ),
    "integer scales": (
        quantized(retype("lm_head.scales", mx.uint8)),
        CheckpointError,
        (WEIGHTS, "lm_head.scales is 'U8'", "BF16 or F16 or F32"),
    ),
    "floating scales of mxfp4": (
        quantized(retype("lm_head.scales", mx.float32), mode="mxfp4"),
        CheckpointError,
        (WEIGHTS, "lm_head.scales is 'F32'", "expected U8"),
    ),
}
CASES = cases(number=NUMBERS, meaning=MEANINGS, quantized=QUANTIZED)


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_line_that_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    make, error, words = CASES[name]
    check_load(make, error, words, tmp_path / "model")


@pytest.mark.parametrize("name", one_of_each(CASES))  # it reads a config as loading does
def test_a_conversion_says_the_same_with_exit_status_1(tmp_path: Path, name: str) -> None:
    make, _, words = CASES[name]
    check_convert(make, words, tmp_path / "model")


def test_keys_of_quantization_that_nothing_uses_are_named(tmp_path: Path) -> None:
    unused = {"grup_size": 32, "model.layers.9.mlp.up_proj": {"bits": 8}, "model.layers.1.mlp.router.gate": {"bits": 8}}
    used = {"mode": "affine", "lm_head": True, "model.layers.2.mlp.router.gate": False}
    folder = tmp_path / "model"
    quantized(lambda folder: edit(folder, lambda raw: raw["quantization"].update(unused | used)))(folder)
    with pytest.warns(UserWarning, match="config: unused keys of quantization ignored: ") as told:
        load_model(folder)
    assert str(told[0].message).endswith(f": {', '.join(sorted(unused))}")


@pytest.mark.filterwarnings("error")
def test_keys_of_quantization_that_are_used_are_not(tmp_path: Path) -> None:
    quantized(lambda folder: None)(tmp_path / "model")
    load_model(tmp_path / "model")


@pytest.mark.parametrize("name", one_of_each(CASES))
def test_an_answer_is_refused_with_exit_status_1(tmp_path: Path, name: str) -> None:
    check_generate(CASES[name][0], tmp_path / "model")
