"""Configs are read as Transformers reads them: both spellings, its defaults, and nothing dropped without a word."""

import dataclasses
import json
import warnings
from typing import Any

import pytest

from afmoe_mlx.errors import ConfigError
from afmoe_mlx.models import ModelConfig, read_config
from afmoe_mlx.models.config import IGNORED, NEUTRAL
from helpers.checkpoints import golden, older_spelling
from helpers.grid import AFMOE, GRID, LFM2, LINEAR, LLAMA3, YARN

SLIDING, FULL = "sliding_attention", "full_attention"
# Transformers 5.23's AfmoeConfig() and Lfm2MoeConfig(); layer_types of the second has no default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "afmoe": {
        "vocab_size": 200192,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 32,
        "num_dense_layers": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_shared_experts": 2,
        "route_scale": 1.0,
        "global_attn_every_n_layers": 4,
        "sliding_window": 1024,
        "mup_enabled": False,
        "attention_bias": False,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "lfm2_moe": {
        "vocab_size": 65536,
        "hidden_size": 2048,
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "num_hidden_layers": 32,
        "num_dense_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128_000,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "conv_L_cache": 3,
        "conv_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}
BASES = {"afmoe": AFMOE, "lfm2_moe": LFM2}


def read(model_type: str = "afmoe", **changes: Any) -> ModelConfig:
    """The grid's base config with keys changed; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_config({"model_type": model_type} | BASES[model_type] | changes)


def defaults(model_type: str) -> ModelConfig:
    needed = {"layer_types": ["conv"] * 32} if model_type == "lfm2_moe" else {}
    return read_config({"model_type": model_type} | needed)


def assert_equal(config: ModelConfig, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name == "rope_parameters":
            ours = {"rope_type": config.rope.rope_type, "rope_theta": config.rope.rope_theta}
        else:
            ours = getattr(config, name)
        assert (list(ours) if isinstance(ours, tuple) else ours) == value, name


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    assert_equal(defaults(model_type), DEFAULTS[model_type])


def test_what_transformers_ignores_defaults_to_what_it_does() -> None:
    config = read()
    assert (config.score_func, config.route_norm) == ("sigmoid", True)


@pytest.mark.reference
@pytest.mark.parametrize("model_type", DEFAULTS)
def test_defaults_equal_the_installed_transformers(model_type: str) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = {"afmoe": transformers.AfmoeConfig, "lfm2_moe": transformers.Lfm2MoeConfig}[model_type]().to_dict()
    fields = {field.name for field in dataclasses.fields(type(defaults(model_type)))} - {"rope"}
    needed = {name: theirs[name] for name in fields & theirs.keys() if theirs[name] is not None}
    assert len(needed) >= len(DEFAULTS[model_type]) - 1
    assert_equal(defaults(model_type), needed | {"rope_parameters": theirs["rope_parameters"]})


@pytest.mark.reference
@pytest.mark.parametrize("model_type", DEFAULTS)
def test_no_key_of_the_installed_transformers_is_unknown(model_type: str) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = {"afmoe": transformers.AfmoeConfig, "lfm2_moe": transformers.Lfm2MoeConfig}[model_type]
    popped = transformers.GenerationConfig._get_default_generation_params()
    given = BASES[model_type] | {"model_type": model_type} | dict.fromkeys(popped, 1)
    for raw in (given, theirs(**BASES[model_type]).to_dict()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_config(json.loads(json.dumps(raw)))


@pytest.mark.parametrize("name", [name for name in GRID if "rope_parameters" in GRID[name]])
def test_both_spellings_say_the_same(name: str) -> None:
    raw = golden(name).config
    older = older_spelling(raw)
    assert "rope_parameters" not in older
    assert read_config(older) == read_config(raw)


def test_rope_scaling_wins_over_rope_parameters() -> None:
    assert read(rope_scaling=LINEAR, rope_parameters=YARN).rope.rope_type == "linear"
    assert read(rope_scaling=None, rope_parameters=LINEAR).rope.rope_type == "linear"


def test_theta_beside_rope_parameters_is_taken_only_where_they_have_none() -> None:
    assert read(rope_theta=5e5).rope.rope_theta == 5e5
    assert read(rope_theta=5e5, rope_parameters={"rope_type": "default"}).rope.rope_theta == 5e5
    assert read(rope_theta=5e5, rope_parameters={"rope_theta": 7e5}).rope.rope_theta == 7e5
    assert read(rope_scaling={"type": "linear", "factor": 2}, rope_parameters={"rope_theta": 7}).rope.rope_theta == 1e4
    assert read("lfm2_moe").rope.rope_theta == 1e6


def test_original_length_beside_rope_parameters_wins() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    assert read(rope_parameters=yarn).rope.original_max_position_embeddings == 512
    within = yarn | {"original_max_position_embeddings": 128}
    assert read(rope_parameters=within).rope.original_max_position_embeddings == 128
    beside = read(rope_parameters=within, original_max_position_embeddings=64)
    assert beside.rope.original_max_position_embeddings == 64


def test_a_null_yarn_factor_is_the_ratio_of_the_lengths() -> None:
    assert read(rope_parameters=YARN | {"factor": None}).rope.factor == 4.0


def test_layer_types_win_and_are_filled_in_where_absent() -> None:
    kinds = [FULL, SLIDING, FULL, SLIDING]
    assert read(layer_types=kinds, global_attn_every_n_layers=4).layer_types == tuple(kinds)
    assert read(layer_types=None, global_attn_every_n_layers=2).layer_types == (SLIDING, FULL) * 2
    assert read(global_attn_every_n_layers=1).layer_types == (FULL,) * 4
    assert read(global_attn_every_n_layers=9).layer_types == (SLIDING,) * 4


def test_full_attn_idxs_stand_in_for_layer_types() -> None:
    assert read("lfm2_moe", layer_types=None, full_attn_idxs=[1, 3]).layer_types == ("conv", FULL) * 2
    assert read("lfm2_moe", full_attn_idxs=[0]).layer_types == ("conv", FULL) * 2


def test_tie_embedding_wins() -> None:
    assert not read("lfm2_moe", tie_embedding=False, tie_word_embeddings=True).tie_word_embeddings


def test_null_where_transformers_derives_is_derived() -> None:
    assert read(num_key_value_heads=None).num_key_value_heads == 4
    assert read("lfm2_moe").head_dim == 8


def test_the_window_is_of_no_matter_without_a_sliding_layer() -> None:
    assert read(sliding_window=None, layer_types=[FULL] * 4).sliding_window is None


def test_whole_floats_are_integers() -> None:
    assert read(hidden_size=32.0, num_experts=6.0).hidden_size == 32


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_bookkeeping_keys_are_ignored_in_silence(model_type: str) -> None:
    read(model_type, **dict.fromkeys(IGNORED - {"model_type"}, 1))


@pytest.mark.parametrize("name", ["afmoe-base", "lfm2_moe-base"])
def test_what_transformers_writes_is_read_in_silence(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_config(golden(name).config)


def test_hub_configs_are_read_in_silence() -> None:
    extras = {
        "auto_map": {"AutoConfig": "configuration_afmoe.AfmoeConfig"},
        "load_balance_coeff": 0.001,
        "num_expert_groups": 1,
        "num_limited_groups": 1,
        "n_group": 1,
        "topk_group": 1,
        "use_grouped_mm": True,
        "rope_scaling": None,
        "rope_theta": 10000,
        "torch_dtype": "bfloat16",
        "score_func": "sigmoid",
        "route_norm": True,
    }
    read(**extras)


def test_unknown_keys_are_named_in_one_warning() -> None:
    raw = {"model_type": "afmoe"} | AFMOE | {"novelty": 1, "a\nb": 2}
    with pytest.warns(UserWarning, match="novelty") as caught:
        read_config(raw)
    assert len(caught) == 1
    assert str(caught[0].message).isprintable()


def test_unknown_rope_keys_are_named_in_one_warning() -> None:
    raw = {"model_type": "afmoe"} | AFMOE | {"rope_parameters": LINEAR | {"mrope_section": [1, 2]}}
    with pytest.warns(UserWarning, match="mrope_section") as caught:
        read_config(raw)
    assert len(caught) == 1


@pytest.mark.parametrize("model_type", DEFAULTS)
@pytest.mark.parametrize("key", NEUTRAL)
def test_keys_that_would_change_the_computation_are_refused_by_name(model_type: str, key: str) -> None:
    for neutral in NEUTRAL[key]:
        read(model_type, **{key: neutral})
    with pytest.raises(ConfigError, match=rf"^config: {key} is 17: expected "):
        read(model_type, **{key: 17})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_dense_layers", None),
        ("num_experts", None),
        ("mup_enabled", None),
        ("route_scale", None),
        ("num_shared_experts", None),
        ("global_attn_every_n_layers", 0),
        ("tie_word_embeddings", 1),
        ("attention_bias", "false"),
    ],
)
def test_values_without_a_meaning_here_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^config: {key} is "):
        read(**{key: value})


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().hidden_size = 3  # type: ignore[misc]


@pytest.mark.reference
@pytest.mark.parametrize("rope", [LINEAR, LLAMA3, YARN], ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"factor": 0.5},
        {"rope_theta": 3},
        {"original_max_position_embeddings": 7},
        {"beta_fast": 0, "beta_slow": 0},
        {"beta_fast": 1.0, "beta_slow": 32.0},
        {"attention_factor": 0.0},
        {"mscale": 0, "mscale_all_dim": 2},
        {"mscale": 2.0, "mscale_all_dim": 2},
        {"truncate": False},
        {"low_freq_factor": 3.5},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:config. unknown keys")
def test_frequencies_equal_the_installed_transformers(rope: dict[str, Any], change: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs = transformers.AfmoeConfig(**AFMOE | {"rope_parameters": rope | change})
    frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs)
    ours = read_config({"model_type": "afmoe"} | AFMOE | {"rope_parameters": rope | change}).rope
    assert ours.frequencies(8).tolist() == pytest.approx(frequencies.tolist(), rel=1.2e-7)
    assert ours.scale == pytest.approx(scale)
