"""Converted models compute what quantizing by hand gives, and the same input gives the same bytes."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx import convert, load_model
from afmoe_mlx.checkpoint import open_model
from afmoe_mlx.checkpoint.save import save_weights
from afmoe_mlx.conversion.hub_layout import hub_tensors
from afmoe_mlx.conversion.pipeline import ConversionProgress
from afmoe_mlx.errors import ConversionError
from afmoe_mlx.models import CausalLM
from helpers.checkpoints import golden, recast, write, write_golden
from helpers.converted import FORMATS, WIDE, config_of, contents, logits, source_folder, stored  # noqa: F401 (a fixture)
from helpers.tiny import tiny_folder

ROUTERS = ("router.gate", "feed_forward.gate")


def rounded(model: CausalLM, options: dict[str, Any]) -> CausalLM:
    """Every weight but a router's quantized and dequantized by mlx itself, in place."""
    options = {"group_size": None, "bits": None, "mode": "affine"} | options
    for path, module in model.named_modules():
        if hasattr(module, "to_quantized") and not path.endswith(ROUTERS):
            parts = mx.quantize(module.weight, **options)
            biases = parts[2] if len(parts) == 3 else None
            module.weight = mx.dequantize(parts[0], parts[1], biases, **options).astype(mx.float32)
    return model


@pytest.mark.parametrize("chosen", FORMATS)
def test_logits_equal_those_of_weights_quantized_by_hand(source: Path, tmp_path: Path, chosen: str) -> None:
    options = FORMATS[chosen]
    ours, _ = load_model(convert(source, tmp_path / "out", **options))
    by_hand = rounded(open_model(source), options)
    assert np.abs(logits(ours) - logits(by_hand)).max() < 1e-4
    assert np.abs(logits(ours) - logits(open_model(source))).max() > 1e-3


@pytest.mark.parametrize("chosen", ["4 bits", "mxfp4"])
def test_routers_and_expert_bias_are_never_quantized(source: Path, tmp_path: Path, chosen: str) -> None:
    before, after = stored(source), stored(convert(source, tmp_path / "out", **FORMATS[chosen]))
    kept = [name for name in before if name.endswith(("router.gate.weight", "feed_forward.gate.weight", "expert_bias"))]
    assert len(kept) == 2
    assert all(mx.array_equal(before[name], after[name]) for name in kept)
    scales = {name.removesuffix(".scales") for name in after if name.endswith(".scales")}
    plain = {name for name in before if name.endswith("_proj.weight") or "embed_tokens" in name or "lm_head" in name}
    assert scales == {name.removesuffix(".weight") for name in plain}


def test_defaults_are_4_bits_in_groups_of_64(source: Path, tmp_path: Path) -> None:
    raw = config_of(convert(source, tmp_path / "out"))
    assert raw["quantization"] == raw["quantization_config"] == {"bits": 4, "group_size": 64, "mode": "affine"}


def test_what_groups_do_not_divide_stays_as_it_is(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "a", moe_intermediate_size=24, hidden_size=64)
    after = stored(convert(source, tmp_path / "b", group_size=64))
    assert "model.layers.1.mlp.experts.gate_proj.scales" in after
    assert "model.layers.1.mlp.experts.down_proj.scales" not in after
    assert np.isfinite(logits(load_model(tmp_path / "b")[0])).all()


def test_quantizing_nothing_is_warned_of(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "a", moe_intermediate_size=24)
    with pytest.warns(UserWarning, match="nothing is quantized"):
        convert(source, tmp_path / "b", group_size=128)
    assert "quantization" not in config_of(tmp_path / "b")


def test_plain_conversion_changes_no_number(source: Path, tmp_path: Path) -> None:
    before, after = stored(source), stored(convert(source, tmp_path / "out", quantize=False))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    assert "quantization" not in config_of(tmp_path / "out")


@pytest.mark.parametrize("name", ["afmoe-everything", "afmoe-three_shared", "lfm2_moe-everything", "afmoe-llama3"])
def test_conversion_from_the_hubs_layout_keeps_the_reference_logits(tmp_path: Path, name: str) -> None:
    converted = convert(write_golden(tmp_path / "a", name), tmp_path / "b", quantize=False)
    arrays = golden(name).arrays
    model, config = load_model(converted)
    assert np.abs(np.array(model(mx.array(arrays["ids"]))) - arrays["logits"]).max() < 2e-5
    assert config == load_model(tmp_path / "a")[1]


def test_a_converted_config_is_read_as_the_same_whatever_its_spelling(tmp_path: Path) -> None:
    made = golden("lfm2_moe-base")
    raw = {k: v for k, v in made.config.items() if k not in ("layer_types", "rope_parameters")}
    raw |= {"full_attn_idxs": [1, 3], "rope_theta": 1e6, "tie_embedding": True}
    source = write(tmp_path / "a", raw, made.tensors)
    written = config_of(convert(source, tmp_path / "b", quantize=False))
    assert "full_attn_idxs" not in written
    assert load_model(tmp_path / "b")[1] == load_model(source)[1]


@pytest.mark.parametrize("chosen", ["3 bits", "groups of 128", "mxfp4", "nvfp4"])
def test_dequantizing_gives_the_same_logits_in_plain_weights(source: Path, tmp_path: Path, chosen: str) -> None:
    convert(source, tmp_path / "q", **FORMATS[chosen])
    convert(tmp_path / "q", tmp_path / "plain", dequantize=True, dtype="float32")
    model_type = config_of(source)["model_type"]
    expected = {key for name, a in stored(source).items() for key, _ in hub_tensors(name, a.shape, model_type)}
    assert stored(tmp_path / "plain").keys() == expected
    assert not {"quantization", "quantization_config"} & config_of(tmp_path / "plain").keys()
    ours, quantized = load_model(tmp_path / "plain")[0], load_model(tmp_path / "q")[0]
    assert np.abs(logits(ours) - logits(quantized)).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("quantize", [True, False])
def test_dtype_is_that_of_everything_not_quantized(source: Path, tmp_path: Path, dtype: str, quantize: bool) -> None:
    after = stored(convert(source, tmp_path / "out", quantize=quantize, dtype=dtype))
    kinds = {array.dtype for name, array in after.items() if not name.endswith("expert_bias")}
    assert kinds == {getattr(mx, dtype)} | ({mx.uint32} if quantize else set())
    assert {array.dtype for name, array in after.items() if name.endswith("expert_bias")} == {mx.float32}
    assert config_of(tmp_path / "out")["torch_dtype"] == dtype


def test_dtypes_stay_as_stored_by_default(tmp_path: Path) -> None:
    source = recast(write_golden(tmp_path / "a", "afmoe-base"), mx.bfloat16, keep="norm.weight")
    after = stored(convert(source, tmp_path / "b", group_size=32))
    assert after["model.norm.weight"].dtype == mx.float32
    assert after["lm_head.scales"].dtype == mx.bfloat16
    assert after["model.layers.1.mlp.router.gate.weight"].dtype == mx.bfloat16


def test_the_scales_of_experts_stay_in_float32(tmp_path: Path) -> None:
    source = with_expert_scales(tmp_path)
    before, after = stored(source), stored(convert(source, tmp_path / "b", quantize=False, dtype="bfloat16"))
    scales = [name for name in before if name.endswith("global_scale")]
    assert len(scales) == 3
    assert all(mx.array_equal(before[name], after[name]) for name in scales)
    assert config_of(tmp_path / "b")["quantization"] == config_of(source)["quantization"]


def with_expert_scales(folder: Path) -> Path:
    """nvfp4 with one more scale for each expert, as mlx-lm writes it when asked."""
    source = convert(tiny_folder(folder / "plain", **WIDE["afmoe"]), folder / "a", mode="nvfp4")
    weights, plain = stored(source), stored(folder / "plain")
    for name in [name for name in plain if ".experts." in name]:
        path = name.removesuffix(".weight")
        scale = mx.abs(plain[name]).max(axis=(-2, -1))
        parts = [mx.quantize(w, mode="nvfp4", global_scale=s) for w, s in zip(plain[name], scale, strict=True)]
        weights[name], weights[f"{path}.scales"] = (mx.stack(list(part)) for part in zip(*parts, strict=True))
        weights[f"{path}.global_scale"] = scale
    mx.eval(weights)
    save_weights(source, weights)
    return source


@pytest.mark.parametrize("dequantize", [True, False])
def test_the_scales_of_experts_are_computed_with(tmp_path: Path, dequantize: bool) -> None:
    source, plain = with_expert_scales(tmp_path), tmp_path / "plain"
    if dequantize:
        source = convert(source, tmp_path / "b", dequantize=True, dtype="float32")
    assert np.sqrt(((logits(load_model(source)[0]) - logits(load_model(plain)[0])) ** 2).mean()) < 0.4
    assert np.abs(logits(load_model(source)[0]) - logits(load_model(source, fuse=False)[0])).max() < 1e-4


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    once, again = (convert(source, tmp_path / name, bits=3) for name in ("one", "two"))
    assert contents(once) == contents(again)
    assert not any(str(tmp_path).encode() in data or str(source).encode() in data for data in contents(once).values())


def test_companions_are_copied_and_nothing_else(source: Path, tmp_path: Path) -> None:
    companions = {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "generation_config.json",
        "additional_chat_templates/tools.jinja",
    }
    made = golden("afmoe-base")
    folder = write(tmp_path / "a", made.config, made.tensors)
    (folder / "additional_chat_templates").mkdir()
    for name in {*companions, "modeling_afmoe.py", "pytorch_model.bin", "additional_chat_templates/x.py"}:
        (folder / name).write_text(name)
    copied = contents(convert(folder, tmp_path / "b", quantize=False))
    own = {"config.json", "model.safetensors", "model.safetensors.index.json"}
    assert copied.keys() == companions | own
    assert all(copied[name] == name.encode() for name in companions)


def test_progress_counts_up_to_all_bytes_and_layers(source: Path, tmp_path: Path) -> None:
    seen: list[ConversionProgress] = []
    convert(source, tmp_path / "out", on_progress=seen.append)
    total = sum(array.nbytes for array in stored(tmp_path / "out").values())
    assert seen[-1] == ConversionProgress(total, total, 2, 2)
    done = [(progress.bytes_done, progress.layer) for progress in seen]
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 7}, "bits is 7: expected 2, 3, 4, 5, 6, 8"),
        ({"group_size": 48}, "group_size is 48: expected 32, 64, 128"),
        ({"mode": "q4"}, "mode is 'q4': expected one of affine"),
        ({"mode": "mxfp4", "bits": 8}, "bits is 8: expected 4 with mode mxfp4"),
        ({"dtype": "int8"}, "dtype is 'int8': expected one of float16"),
        ({"dequantize": True}, "is not quantized: nothing to dequantize"),
        ({"recipe": "4bit", "bits": 3}, "recipe and bits, group_size or mode are given"),
        ({"recipe": "4bit", "dequantize": True}, "recipe and dequantize are given"),
        ({"recipe": "5bit"}, "recipe is '5bit': expected one of 4bit"),
    ],
)
def test_senseless_options_are_refused(source: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        convert(source, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_what_is_quantized_is_not_quantized_again(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "once")
    with pytest.raises(ConversionError, match="quantized already"):
        convert(tmp_path / "once", tmp_path / "twice")


def test_a_quantized_model_is_copied_as_it_is(source: Path, tmp_path: Path) -> None:
    once = convert(source, tmp_path / "once", bits=3)
    assert contents(convert(once, tmp_path / "copy", quantize=False)) == contents(once)


@pytest.mark.parametrize("differs", [True, False])
def test_a_head_that_is_not_the_embeddings_it_is_tied_to_is_kept(tmp_path: Path, differs: bool) -> None:
    made = golden("lfm2_moe-base")
    assert made.config["tie_word_embeddings"]
    embeddings = made.tensors["model.embed_tokens.weight"]
    head = embeddings.copy()
    head[-1, -1] += differs
    folder = write(tmp_path / "a", made.config, made.tensors | {"lm_head.weight": head}, shards=2)
    if not differs:
        convert(folder, tmp_path / "b", quantize=False)
    else:
        with pytest.warns(UserWarning, match=r"lm_head.weight is not the embeddings"):
            convert(folder, tmp_path / "b", quantize=False)
    assert ("lm_head.weight" in stored(tmp_path / "b")) == differs
    assert config_of(tmp_path / "b")["tie_word_embeddings"] != differs
