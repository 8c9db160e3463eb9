"""Every bad checkpoint is an error of ours on one line, that names the file or key, what was found and expected."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import golden, packed, stacked, write, write_golden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import save
from typer.testing import CliRunner

from afmoe_mlx import convert, load_model
from afmoe_mlx.checkpoint.files import read_headers
from afmoe_mlx.cli import app
from afmoe_mlx.errors import AfmoeError, CheckpointError, ConfigError

Break = Callable[[Path], Any]
# What a bad folder is made of, the error's class, and what its message says.
Case = tuple[Break, type[AfmoeError], tuple[str, ...]]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def config(name: str = "afmoe-base", **changes: Any) -> Break:
    """A golden with config keys changed; `...` takes one out."""

    def make(folder: Path) -> None:
        made = golden(name)
        kept = {key: value for key, value in (made.config | changes).items() if value is not ...}
        write(folder, kept, made.tensors)

    return make


def tensors(change: Callable[[dict[str, np.ndarray]], Any], name: str = "afmoe-base", **options: Any) -> Break:
    """A golden whose tensors were changed in place."""

    def make(folder: Path) -> None:
        made = golden(name)
        stored = options.get("layout", dict)(made.tensors)
        change(stored)
        write(folder, made.config, stored)

    return make


def put(**arrays: np.ndarray) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda stored: stored.update({name.replace("__", "."): array for name, array in arrays.items()})


def file(name: str, content: bytes | str) -> Break:
    """A golden with one file overwritten."""

    def make(folder: Path) -> None:
        write_golden(folder, "afmoe-base")
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def cut(keep: Callable[[int], int]) -> Break:
    """A golden whose weights end after the first `keep(size)` bytes."""

    def make(folder: Path) -> None:
        path = write_golden(folder, "afmoe-base") / WEIGHTS
        path.write_bytes(path.read_bytes()[: keep(path.stat().st_size)])

    return make


def lying(change: Callable[[dict[str, Any]], Any]) -> Break:
    """A golden whose safetensors header was changed."""

    def make(folder: Path) -> None:
        path = write_golden(folder, "afmoe-base") / WEIGHTS
        stored = path.read_bytes()
        (size,) = struct.unpack("<Q", stored[:8])
        header = json.loads(stored[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + stored[8 + size :])

    return make


def index(weight_map: Any) -> Break:
    return file(INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}))


def quantized(after: Callable[[Path], Any], **options: Any) -> Break:
    def make(folder: Path) -> None:
        source = write_golden(folder.with_name(f"{folder.name}-source"), "afmoe-base")
        convert(source, folder, **{"group_size": 32} | options)
        after(folder)

    return make


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


def retype(name: str, dtype: mx.Dtype) -> Break:
    def make(folder: Path) -> None:
        stored = mx.load(str(folder / WEIGHTS))
        stored[name] = stored[name].astype(dtype)
        mx.eval(stored)
        mx.save_safetensors(str(folder / WEIGHTS), stored)

    return make


def only_bin(folder: Path) -> None:
    (write_golden(folder, "afmoe-base") / WEIGHTS).rename(folder / "pytorch_model.bin")


def shard_gone(folder: Path) -> None:
    made = golden("afmoe-base")
    write(folder, made.config, made.tensors, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()


def shard_gone_without_index(folder: Path) -> None:
    shard_gone(folder)
    (folder / INDEX).unlink()


def twice(folder: Path) -> None:
    shard_gone_without_index(folder)
    first = folder / "model-00001-of-00003.safetensors"
    (folder / "model-00002-of-00003.safetensors").write_bytes(first.read_bytes())


def odd_packed(stored: dict[str, np.ndarray]) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    stored[name] = np.concatenate([stored[name], stored[name][:, :1]], axis=1)


def flat_packed(stored: dict[str, np.ndarray]) -> None:
    stored["model.layers.1.mlp.experts.gate_up_proj"] = np.zeros(4, np.float32)


def drop(*names: str) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda stored: [stored.pop(name) for name in names]


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


LINEAR = {"rope_type": "linear", "rope_theta": 1e4}
LLAMA3 = LINEAR | {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
YARN = LINEAR | {"rope_type": "yarn", "factor": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
TYPES = ["sliding_attention"] * 4

FOLDERS: dict[str, Case] = {
    "no folder": (lambda folder: None, CheckpointError, ("no such folder", "{folder}")),
    "a file": (lambda folder: folder.write_text("hi"), CheckpointError, ("is a file", "{folder}", "config.json")),
    "an empty folder": (lambda folder: folder.mkdir(), ConfigError, ("config.json", "no such file")),
    "no weights": (file("config.json", "{}"), ConfigError, ("no model_type", "afmoe", "lfm2_moe")),
    "only .bin": (only_bin, CheckpointError, ("only pytorch_model.bin", "model.safetensors")),
    "config is a folder": (
        lambda folder: (folder / "config.json").mkdir(parents=True),
        ConfigError,
        ("config.json", "cannot be read"),
    ),
}
JSON: dict[str, Case] = {
    "not JSON": (file("config.json", "model_type: afmoe"), ConfigError, ("config.json", "not valid JSON")),
    "empty": (file("config.json", ""), ConfigError, ("config.json", "not valid JSON")),
    "a list": (file("config.json", "[1]"), ConfigError, ("config.json", "JSON list", "expected an object")),
    "null": (file("config.json", "null"), ConfigError, ("config.json", "expected an object")),
    "nested": (file("config.json", nested(200_000)), ConfigError, ("config.json", "not valid JSON")),
    "a huge number": (file("config.json", '{"a": 1' + "0" * 9000 + "}"), ConfigError, ("config.json", "not valid")),
    "not UTF-8": (file("config.json", b'{"model_type": "\xff\xfe"}'), ConfigError, ("config.json", "not valid JSON")),
    "NaN": (config(hidden_size=float("nan")), ConfigError, ("hidden_size is nan", "expected int")),
    "infinity": (config(rms_norm_eps=float("inf")), ConfigError, ("rms_norm_eps is inf", "expected float")),
    "index is not JSON": (file(INDEX, "{"), CheckpointError, (INDEX, "not valid JSON")),
    "index is a list": (file(INDEX, "[]"), CheckpointError, (INDEX, "expected an object")),
    "index without a map": (file(INDEX, "{}"), CheckpointError, (INDEX, "weight_map")),
    "index with a list": (index(["model.safetensors"]), CheckpointError, (INDEX, "weight_map")),
    "index with numbers": (index({QUERY: 3}), CheckpointError, (INDEX, "weight_map")),
    "index names nothing": (index({}), CheckpointError, ("missing", "model.embed_tokens.weight")),
    "absent shard": (index({QUERY: "model-7.safetensors"}), CheckpointError, (INDEX, "model-7.safetensors", "no such")),
    "path outside": (
        index({QUERY: "../model.safetensors"}),
        CheckpointError,
        (INDEX, "../model.safetensors", "beside"),
    ),
    "absolute path": (index({QUERY: "/etc/x.safetensors"}), CheckpointError, (INDEX, "/etc/x.safetensors", "beside")),
    "parent": (index({QUERY: ".."}), CheckpointError, (INDEX, "'..'")),
    "no name": (index({QUERY: ""}), CheckpointError, (INDEX, "''")),
    "a pickle": (index({QUERY: "pytorch_model.bin"}), CheckpointError, (INDEX, "pytorch_model.bin", ".safetensors")),
    "a name too long": (index({QUERY: "x" * 5000 + ".safetensors"}), CheckpointError, (INDEX, "no such file")),
    "a name with NUL": (index({QUERY: "a\0b.safetensors"}), CheckpointError, (INDEX, "no such file")),
    "a name of two lines": (index({QUERY: "a\nb.safetensors"}), CheckpointError, (INDEX, r"a\nb.safetensors")),
}
FILES: dict[str, Case] = {
    "empty": (file(WEIGHTS, b""), CheckpointError, (WEIGHTS, "not a whole safetensors file")),
    "garbage": (file(WEIGHTS, b"garbage " * 1000), CheckpointError, (WEIGHTS, "not a whole safetensors file")),
    "zeros": (file(WEIGHTS, bytes(4096)), CheckpointError, (WEIGHTS, "not a whole safetensors file")),
    "a pickle": (file(WEIGHTS, b"\x80\x04N."), CheckpointError, (WEIGHTS, "not a whole safetensors file")),
    **{
        f"cut at {i}": (cut(lambda size, i=i: size * i // 8 or 3), CheckpointError, (WEIGHTS, "not a whole"))
        for i in range(8)
    },
    "cut by a byte": (cut(lambda size: size - 1), CheckpointError, (WEIGHTS, "not a whole safetensors file")),
    "cut in its size": (cut(lambda size: 7), CheckpointError, (WEIGHTS, "not a whole safetensors file")),
    "a size beyond": (
        lying(lambda header: header[QUERY].update(data_offsets=[0, 2**60])),
        CheckpointError,
        (WEIGHTS, "not a whole safetensors file"),
    ),
    "a shape beyond": (
        lying(lambda header: header[QUERY].update(shape=[2**40, 32])),
        CheckpointError,
        (WEIGHTS, "not a whole safetensors file"),
    ),
    "an unknown dtype": (
        lying(lambda header: header[QUERY].update(dtype="F1")),
        CheckpointError,
        (WEIGHTS, "not a whole safetensors file"),
    ),
    "another dtype": (
        lying(lambda header: header[QUERY].update(dtype="I32")),
        CheckpointError,
        (WEIGHTS, QUERY, "I32", "BF16, F16, F32"),
    ),
    "no header object": (file(WEIGHTS, struct.pack("<Q", 2) + b"[]"), CheckpointError, (WEIGHTS, "not a whole")),
    "absent shard": (shard_gone, CheckpointError, (INDEX, "model-00002-of-00003.safetensors", "download it again")),
    "absent shard, no index": (shard_gone_without_index, CheckpointError, ("missing", "and", "more", "incomplete")),
    "twice": (twice, CheckpointError, ("model-00002-of-00003.safetensors", "too", "expected it once")),
}
TENSORS: dict[str, Case] = {
    "missing": (tensors(drop(QUERY)), CheckpointError, ("missing", QUERY)),
    "several missing": (tensors(dict.clear), CheckpointError, ("missing lm_head.weight, ", "and", "more")),
    "extra": (tensors(put(model__layers__9__mlp__x=np.zeros(3))), CheckpointError, ("model.layers.9.mlp.x", "F64")),
    "extra layer": (
        tensors(put(model__layers__4__input_layernorm__weight=np.zeros(32, np.float32))),
        CheckpointError,
        ("unexpected", "model.layers.4.input_layernorm.weight"),
    ),
    "extra head": (
        config("afmoe-base", tie_word_embeddings=False, attention_bias=True),
        CheckpointError,
        ("missing", "q_proj.bias"),
    ),
    "unexpected bias": (
        config("afmoe-attention_bias", attention_bias=False),
        CheckpointError,
        ("unexpected", "q_proj.bias"),
    ),
    "an extra of two lines": (
        tensors(lambda stored: stored.update({"a\nb\x1b[31m": np.zeros(3, np.float32)})),
        CheckpointError,
        ("unexpected", r"'a\nb\x1b[31m'"),
    ),
    "misshapen": (
        tensors(lambda stored: stored.update({QUERY: np.zeros((30, 32), np.float32)})),
        CheckpointError,
        (WEIGHTS, QUERY, "(30, 32)", "(32, 32)"),
    ),
    "transposed": (
        tensors(lambda stored: stored.update({"lm_head.weight": np.zeros((32, 40), np.float32)})),
        CheckpointError,
        ("lm_head.weight", "(32, 40)", "(40, 32)"),
    ),
    "another width": (config(intermediate_size=50), CheckpointError, ("mlp.gate_proj.weight", "(48, 32)", "(50, 32)")),
    "another window of convolution": (
        config("lfm2_moe-base", conv_L_cache=4),
        CheckpointError,
        ("conv.conv.weight", "(32, 1, 3)", "(32, 4, 1)"),
    ),
    "another vocabulary": (
        config(vocab_size=41),
        CheckpointError,
        ("model.embed_tokens.weight", "(40, 32)", "(41, 32)"),
    ),
    "an expert missing": (
        tensors(drop(EXPERT)),
        CheckpointError,
        ("model.layers.1.mlp.experts.up_proj.weight", "expert 3 is missing", "expected 6"),
    ),
    "more experts": (config(num_experts=8), CheckpointError, ("router.gate.weight", "(6, 32)", "(8, 32)")),
    "fewer experts": (config(num_experts=5), CheckpointError, ("router.gate.weight", "(6, 32)", "(5, 32)")),
    "an expert too many": (
        tensors(lambda stored: stored.update({EXPERT.replace(".3.", ".6."): stored[EXPERT]})),
        CheckpointError,
        ("experts.0.up_proj.weight", "2 more", "expected one tensor, or one for each of 6 experts"),
    ),
    "an expert's shape": (
        tensors(lambda stored: stored.update({EXPERT: np.zeros((16, 30), np.float32)})),
        CheckpointError,
        (WEIGHTS, EXPERT, "(16, 30)", "(16, 32)"),
    ),
    "an expert numbered twice": (
        tensors(lambda stored: stored.update({EXPERT.replace(".3.", ".03."): stored[EXPERT]})),
        CheckpointError,
        ("experts.03.", "expected one tensor"),
    ),
    "an expert of absurd number": (
        tensors(lambda stored: stored.update({EXPERT.replace(".3.", f".{'9' * 5000}."): stored[EXPERT]})),
        CheckpointError,
        ("unexpected",),
    ),
    "stacked and apart": (
        tensors(lambda stored: stored.update(stacked(stored))),
        CheckpointError,
        ("experts.0.", "expected one tensor"),
    ),
    "packed, odd": (tensors(odd_packed, layout=packed), CheckpointError, ("experts.gate_up_proj", "(6, 33, 32)")),
    "packed, flat": (tensors(flat_packed, layout=packed), CheckpointError, ("experts.gate_up_proj", "(4,)")),
    "integers": (
        tensors(lambda stored: stored.update({QUERY: np.zeros((32, 32), np.uint32)})),
        CheckpointError,
        (WEIGHTS, QUERY, "U32", "BF16 or F16 or F32"),
    ),
    "integer embeddings": (
        tensors(lambda stored: stored.update({"model.embed_tokens.weight": np.zeros((40, 32), np.uint8)})),
        CheckpointError,
        ("model.embed_tokens.weight", "U8", "BF16 or F16 or F32"),
    ),
    "one integer expert": (
        tensors(lambda stored: stored.update({EXPERT: np.zeros((16, 32), np.uint32)})),
        CheckpointError,
        (EXPERT, "U32"),
    ),
}
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
CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "folder": FOLDERS,
        "json": JSON,
        "file": FILES,
        "tensor": TENSORS,
        "number": NUMBERS,
        "meaning": MEANINGS,
        "quantized": QUANTIZED,
    }.items()
    for name, case in cases.items()
}


def assert_message(text: str, folder: Path, words: tuple[str, ...]) -> None:
    assert text.isprintable(), text
    assert len(text) < 400 + 2 * len(str(folder))
    for word in words:
        assert word.format(folder=folder) if "{folder}" in word else word in text, text


@pytest.mark.parametrize("name", CASES)
def test_a_bad_checkpoint_is_one_line_that_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    make, error, words = CASES[name]
    folder = tmp_path / "model"
    make(folder)
    with pytest.raises(AfmoeError) as raised:
        load_model(folder)
    assert type(raised.value) is error, raised.value
    assert_message(str(raised.value), folder, words)


@pytest.mark.parametrize("name", CASES)
def test_from_the_command_line_too_with_exit_status_1(tmp_path: Path, name: str) -> None:
    make, _, words = CASES[name]
    folder = tmp_path / "model"
    make(folder)
    if folder.is_dir():
        save(folder)
    convert_it = ["convert", "--hf-path", str(folder), "--mlx-path", str(tmp_path / "out")]
    # reads the tokenizer first, whose words about the same config.json are its own
    generate_with_it = ["generate", "--model", str(folder), "--prompt", "hello"]
    for arguments, expected in ((convert_it, words), (generate_with_it, ())):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert_message(result.stderr.strip(), folder, expected)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_golden(tmp_path, "afmoe-base")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        *(("pathlib.Path.read_text",) if name == "config.json" else (f"{read_headers.__module__}.read_header",)), refuse
    )
    with pytest.raises(AfmoeError, match=re.escape(name) + ".*Permission denied") as raised:
        load_model(tmp_path)
    assert "\n" not in str(raised.value)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2, 7, 33, 2**24, 2**31 - 1, 2**31, 2**63, 10**12, 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["afmoe", "lfm2_moe", "full_attention", "yarn", "llama3", "linear", "affine", "mxfp4"]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
)
# Keys that the golden's config does not have.
MORE_KEYS = [
    "rope_scaling",
    "rope_theta",
    "quantization",
    "full_attn_idxs",
    "partial_rotary_factor",
    "n_group",
    "dtype",
]


@pytest.fixture(scope="module", params=["afmoe-yarn", "lfm2_moe-llama3"])
def valid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden(tmp_path_factory.mktemp("valid"), request.param)


def assert_loads_or_is_refused(folder: Path) -> None:
    mx.reset_peak_memory()
    try:
        model, _ = load_model(folder)
    except AfmoeError as error:
        message = str(error)
    else:
        message = ""
        mx.eval(model(mx.array([[1, 0, 1]]) % model.config.vocab_size))
    assert message.isprintable()
    assert mx.get_peak_memory() - mx.get_active_memory() < 50_000_000


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:config. unknown keys")
def test_any_value_in_a_config_works_or_is_refused(valid: Path, data: st.DataObject) -> None:
    original = (valid / "config.json").read_text()
    raw = json.loads(original)
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from([raw, raw["rope_parameters"]])) if "rope_parameters" in raw else raw
        if not isinstance(where, dict) or not where:
            where = raw
        key = data.draw(st.sampled_from([*where, *(MORE_KEYS if where is raw else [])]))
        where[key] = data.draw(JUNK)
    (valid / "config.json").write_text(json.dumps(raw))
    try:
        assert_loads_or_is_refused(valid)
    finally:
        (valid / "config.json").write_text(original)


@FUZZ
@given(data=st.data())
def test_any_bytes_in_a_header_work_or_are_refused(valid: Path, data: st.DataObject) -> None:
    path = valid / WEIGHTS
    original = path.read_bytes()
    (size,) = struct.unpack("<Q", original[:8])
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, 8 + size - 1) | st.integers(0, 10))
        changed[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789",:{}[]'))
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed))) :]
    path.write_bytes(changed)
    try:
        assert_loads_or_is_refused(valid)
    finally:
        path.write_bytes(original)
