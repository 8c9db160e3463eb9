"""Every damaged file of a checkpoint is an error on one line that names it, what was found and expected."""

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afmoe_mlx import load_model
from afmoe_mlx.checkpoint.files import read_headers
from afmoe_mlx.errors import AfmoeError, CheckpointError, ConfigError
from helpers.checkpoints import packed, stacked, write_golden
from helpers.damage import (
    EXPERT,
    INDEX,
    QUERY,
    WEIGHTS,
    Case,
    adapter,
    cases,
    check_convert,
    check_generate,
    check_load,
    config,
    cut,
    drop,
    file,
    flat_packed,
    index,
    lying,
    nested,
    odd_packed,
    one_of_each,
    only_bin,
    only_named,
    put,
    shard_gone,
    shard_gone_without_index,
    tensors,
    twice,
)

FOLDERS: dict[str, Case] = {
    "no folder": (lambda folder: None, CheckpointError, ("no such folder", "{folder}")),
    "a file": (lambda folder: folder.write_text("hi"), CheckpointError, ("is a file", "{folder}", "config.json")),
    "an empty folder": (lambda folder: folder.mkdir(), ConfigError, ("config.json", "no such file")),
    "no weights": (file("config.json", "{}"), ConfigError, ("no model_type", "afmoe", "lfm2_moe")),
    "weights of another name": (
        only_named("weights.safetensors"),
        CheckpointError,
        ("only weights.safetensors", "expected model.safetensors", "rename it"),
    ),
    "an adapter of mlx-lm": (
        adapter({"model": "org/base"}, "adapters.safetensors"),
        CheckpointError,
        ("{folder} holds an adapter", "'org/base'"),
    ),
    "an adapter of PEFT": (
        adapter({"base_model_name_or_path": "org/base"}, "adapter_model.safetensors"),
        CheckpointError,
        ("{folder} holds an adapter", "'org/base'"),
    ),
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
CASES = cases(folder=FOLDERS, json=JSON, file=FILES, tensor=TENSORS)


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_line_that_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    make, error, words = CASES[name]
    check_load(make, error, words, tmp_path / "model")


@pytest.mark.parametrize("name", CASES)
def test_a_conversion_says_the_same_with_exit_status_1(tmp_path: Path, name: str) -> None:
    make, _, words = CASES[name]
    check_convert(make, words, tmp_path / "model")


@pytest.mark.parametrize("name", one_of_each(CASES))
def test_an_answer_is_refused_with_exit_status_1(tmp_path: Path, name: str) -> None:
    check_generate(CASES[name][0], tmp_path / "model")


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
