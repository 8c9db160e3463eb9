"""A model with adapters merged into its weights computes what they do beside them, and is written as it was stored."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from afmoe_mlx import convert, load_model
from afmoe_mlx.conversion import encoder, pipeline
from afmoe_mlx.conversion.writer import Writer
from afmoe_mlx.errors import AdapterError, AfmoeError, ConversionError
from afmoe_mlx.training import merge
from afmoe_mlx.training.apply import adapting
from helpers.adapters import arrays, save, targets, theirs
from helpers.checkpoints import golden, packed, stacked, write
from helpers.command_line import invoke
from helpers.converted import WIDE, config_of, contents, stored
from helpers.experts import wide_folder
from helpers.tiny import ARCHITECTURES, tiny_folder, tokens

IDS = tokens(2, 12)
RECIPES = ("mixed_3_6", "mxfp4")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("source") / "model", request.param, **WIDE[request.param])


@pytest.fixture(scope="module")
def afmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("afmoe") / "model", **WIDE["afmoe"])


def adapter_of(folder: Path, source: Path, kind: str = "lora", *, only: str = "", seed: int = 0) -> Path:
    """An adapter of all maps of a model, experts too where it is LoRA, or of those whose paths hold `only`."""
    model = load_model(source, fuse=False)[0]
    if kind == "full":
        held = dict(tree_flatten(model.parameters()))
        return save(folder, {name: array * 1.1 for name, array in held.items() if only in name}, "full")
    shapes = targets(model, config_of(source)["model_type"], experts=kind == "lora")
    chosen = {path: shape for path, shape in shapes.items() if only in path}
    return save(folder, arrays(chosen, dora=kind == "dora", seed=seed), kind)


def distance(a: Any, b: Any) -> float:
    return mx.abs(a(IDS) - b(IDS)).max().item()


def plain(weights: dict[str, mx.array], path: str, config: dict[str, Any]) -> mx.array:
    """A module's weight of some stored tensors, dequantized by MLX itself."""
    chosen = config["quantization"].get(path, config["quantization"])
    options = {key: chosen[key] for key in ("bits", "group_size", "mode")}
    parts = (weights[f"{path}.{kind}"] for kind in ("weight", "scales"))
    return mx.dequantize(*parts, weights.get(f"{path}.biases"), **options).astype(mx.float32)


def fuse(*arguments: object) -> Any:
    return invoke(["fuse", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_merged_and_applied_are_alike(source: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "PIECE_BYTES", 1 << 14)  # so that weights come in several slices
    adapter = adapter_of(tmp_path / "adapter", source, kind)
    before = contents(source) | contents(adapter)
    fused = convert(source, tmp_path / "fused", quantize=False, adapter_path=adapter, adapter_scale=0.7)
    ours = load_model(fused)[0]
    assert distance(ours, load_model(source, adapt=adapting([adapter], 0.7))[0]) < 2e-5
    assert distance(ours, load_model(source)[0]) > 1e-3
    assert {name: a.dtype for name, a in stored(fused).items()} == {n: a.dtype for n, a in stored(source).items()}
    assert contents(source) | contents(adapter) == before
    pytest.importorskip("mlx_lm")
    assert distance(ours, theirs(fused)) < 2e-5


def test_merged_weights_are_those_of_float32_in_the_models_dtype(tmp_path: Path) -> None:
    source = wide_folder(tmp_path / "model", "afmoe", dtype=mx.bfloat16)
    adapter = adapter_of(tmp_path / "adapter", source, only="o_proj")
    weights, change = stored(source), stored(adapter)
    fused = stored(convert(source, tmp_path / "fused", quantize=False, adapter_path=adapter))
    for name in (name for name in weights if name.endswith("o_proj.weight")):
        a, b = (change[name.replace("weight", kind)] for kind in ("lora_a", "lora_b"))
        expected = (weights[name].astype(mx.float32) + (a @ (1.5 * b)).T).astype(mx.bfloat16)
        assert mx.array_equal(fused[name], expected)


def test_several_add_up(afmoe: Path, tmp_path: Path) -> None:
    paths = [adapter_of(tmp_path / str(seed), afmoe, seed=seed) for seed in (1, 2)]
    fused = convert(afmoe, tmp_path / "fused", quantize=False, adapter_path=paths)
    assert distance(load_model(fused)[0], load_model(afmoe, adapt=adapting(paths))[0]) < 2e-5


@pytest.mark.parametrize("name", ["afmoe-base", "lfm2_moe-base"])
def test_every_layout_of_a_source_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    made, found = golden(name), []
    for number, layout in enumerate((None, packed, stacked)):
        source = write(tmp_path / f"from {number}", made.config, made.tensors, layout=layout, shards=1 + 2 * number)
        adapter = adapter_of(tmp_path / "adapter", source)
        options = {"group_size": 32, "adapter_path": adapter}
        found.append(contents(convert(source, tmp_path / f"to {number}", **options)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_original_with_an_adapter_is_quantized_as_the_model_is(source: Path, tmp_path: Path, recipe: str) -> None:
    quantized = convert(source, tmp_path / "quantized", recipe=recipe)
    adapter = adapter_of(tmp_path / "adapter", source)
    merged = convert(source, tmp_path / "merged", quantize=False, adapter_path=adapter)
    expected = contents(convert(merged, tmp_path / "by hand", recipe=recipe))
    names = ("--model", quantized, "--original", source, "--adapter-path", adapter)
    result = fuse(*names, "--save-path", tmp_path / "fused")
    assert result.exit_code == 0, result.stderr
    assert contents(tmp_path / "fused") == expected
    assert "rounding" not in result.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_changed_is_quantized_anew_as_it_was_and_the_rest_stays(
    source: Path, tmp_path: Path, recipe: str
) -> None:
    quantized = convert(source, tmp_path / "quantized", recipe=recipe)
    adapter = adapter_of(tmp_path / "adapter", quantized, only="_proj")
    result = fuse("--model", quantized, "--adapter-path", adapter, "--save-path", tmp_path / "fused", "--json")
    assert result.exit_code == 0, result.stderr
    fused, config = tmp_path / "fused", config_of(quantized)
    before, after = stored(quantized), stored(fused)
    assert config_of(fused) == config
    assert {n: (a.dtype, a.shape) for n, a in after.items()} == {n: (a.dtype, a.shape) for n, a in before.items()}
    changed = {name.rpartition(".")[0] for name in stored(adapter)}
    kept = [name for name in before if name.rpartition(".")[0] not in changed]
    assert all(mx.array_equal(before[name], after[name]) for name in kept)
    applied = convert(quantized, tmp_path / "plain", dequantize=True, adapter_path=adapter)
    merged = stored(convert(applied, tmp_path / "stacked", quantize=False))
    moved = sum(mx.square(merged[f"{path}.weight"] - plain(before, path, config)).sum() for path in changed)
    lost = sum(mx.square(plain(after, path, config) - merged[f"{path}.weight"]).sum() for path in changed)
    assert json.loads(result.stdout)["rounding"] == pytest.approx((lost / moved).item() ** 0.5, rel=0.02)
    assert "moved the merged weights" in result.stderr
    pytest.importorskip("mlx_lm")
    assert distance(load_model(fused)[0], theirs(fused)) < 2e-4


def test_dequantized_it_computes_what_the_adapter_does_beside_quantized_weights(source: Path, tmp_path: Path) -> None:
    quantized = convert(source, tmp_path / "quantized", recipe="mixed_3_6")
    adapter = adapter_of(tmp_path / "adapter", source)
    command = ("--model", quantized, "--adapter-path", adapter, "--save-path", tmp_path / "fused", "--de-quantize")
    assert fuse(*command).exit_code == 0
    assert "quantization" not in config_of(tmp_path / "fused")
    ours, applied = load_model(tmp_path / "fused")[0], load_model(quantized, adapt=adapting([adapter]))[0]
    assert distance(ours, applied) < 2e-5
    pytest.importorskip("mlx_lm")
    assert distance(ours, theirs(tmp_path / "fused")) < 2e-5


def test_a_dry_run_tells_what_is_quantized_anew(afmoe: Path, tmp_path: Path) -> None:
    quantized = convert(afmoe, tmp_path / "quantized", recipe="mixed_3_6")
    adapter = adapter_of(tmp_path / "adapter", afmoe, only="o_proj")
    command = ["convert", "--hf-path", str(quantized), "--dry-run", "--json"]
    with_one = [*command, "--adapter-path", str(adapter)]
    plain, merged = (json.loads(invoke(args).stdout) for args in (command, with_one))
    assert plain == merged


def test_no_more_than_one_layers_changes_are_held(afmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, opened = adapter_of(tmp_path / "adapter", afmoe), []
    read = merge.read_adapter
    monkeypatch.setattr(merge, "read_adapter", lambda *given: opened.append(given) or read(*given))
    convert(afmoe, tmp_path / "fused", adapter_path=adapter)
    assert len(opened) == 1 + 2  # to see what it changes, and for each layer


def test_another_adapter_is_told_from_an_unfinished_conversion(
    afmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (adapter_of(tmp_path / str(seed), afmoe, seed=seed) for seed in (1, 2))
    expected = contents(convert(afmoe, tmp_path / "whole", adapter_path=one))
    write, written = Writer.write, []

    def stopping(writer: Writer, name: str, data: memoryview) -> None:
        write(writer, name, data)
        written.append(name)
        if len(written) == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            convert(afmoe, tmp_path / "fused", adapter_path=one)
    for changes in ({"adapter_path": other}, {"adapter_path": one, "adapter_scale": 2}, {}):
        with pytest.raises(ConversionError, match="differs in its adapters"):
            convert(afmoe, tmp_path / "fused", **changes)
    assert contents(convert(afmoe, tmp_path / "fused", adapter_path=one)) == expected


def test_an_adapter_that_is_written_meanwhile_ends_it(
    afmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of(tmp_path / "adapter", afmoe)
    finish = pipeline._Run._convert

    def written_meanwhile(run: Any, *given: Any) -> None:
        finish(run, *given)
        adapter_of(adapter, afmoe, seed=1)

    monkeypatch.setattr(pipeline._Run, "_convert", written_meanwhile)
    with pytest.raises(ConversionError, match="changed while"):
        convert(afmoe, tmp_path / "fused", adapter_path=adapter)
    assert not (tmp_path / "fused").exists()


REFUSED: dict[str, tuple[dict[str, mx.array], str]] = {
    "foreign": (arrays({"model.layers.9.self_attn.q_proj": (128, 64)}), "not in this model"),
    "tied or absent": (arrays({"lm_hat": (128, 40)}), "lm_hat: not in this model"),
    "embeddings": (arrays({"model.embed_tokens": (128, 40)}), "model.embed_tokens is Embedding"),
    "misshapen": (arrays({"model.layers.0.self_attn.q_proj": (64, 64)}), "has shapes"),
    "NaN": (
        {n: a * mx.nan for n, a in arrays({"model.layers.0.self_attn.o_proj": (128, 128)}).items()},
        "o_proj.weight is NaN or infinite with the adapter merged",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named_in_a_line_and_nothing_is_written(afmoe: Path, tmp_path: Path, name: str) -> None:
    tensors, words = REFUSED[name]
    save(tmp_path / "adapter", tensors)
    with pytest.raises(AfmoeError, match=words) as caught:
        convert(afmoe, tmp_path / "fused", adapter_path=tmp_path / "adapter")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fused").exists()


def test_a_tied_head_has_no_adapter(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", tie_word_embeddings=True)
    width = config_of(source)["hidden_size"]
    save(tmp_path / "adapter", arrays({"lm_head": (width, config_of(source)["vocab_size"])}))
    with pytest.raises(AdapterError, match="lm_head: not in this model"):
        convert(source, tmp_path / "fused", adapter_path=tmp_path / "adapter")


def test_a_global_scale_goes_with_plain_weights_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": mx.float32, "global_scale": True, "mode": "nvfp4", "bits": 4, "group_size": 16}
    source = wide_folder(tmp_path / "model", "afmoe", **options)
    adapter = adapter_of(tmp_path / "adapter", source)
    with pytest.raises(ConversionError, match="has a global scale"):
        convert(source, tmp_path / "fused", quantize=False, adapter_path=adapter)
    fused = convert(source, tmp_path / "plain", dequantize=True, dtype="float32", adapter_path=adapter)
    assert distance(load_model(fused)[0], load_model(source, adapt=adapting([adapter]))[0]) < 0.1


@pytest.mark.parametrize(("original", "expected"), [(None, "mlx-community/"), ("trinity-nano", "arcee-ai/")])
def test_a_short_name_is_what_runs_and_as_an_original_what_was_published(
    original: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def asked(source: str, **_: Any) -> None:
        opened.append(source)
        raise ConversionError("asked")

    monkeypatch.setattr("afmoe_mlx.commands.convert.open_source", asked)
    monkeypatch.setattr("afmoe_mlx.commands.fuse.recipe_of_model", lambda *_, **__: None)
    result = fuse("--model", "trinity-nano", *(["--original", original] if original else []))
    assert result.stderr == "error: asked\n"
    assert opened[0].startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dequantize", "--original", "x"], "--dequantize makes plain weights of --model's"),
        (["--dequantize", "--recipe", "4bit"], "--dequantize makes plain weights of --model's"),
        (["--export-gguf"], "llama.cpp"),
        (["--adapter-scale", "2"], "adapters: no adapter_config.json"),
    ],
)
def test_wrong_usage_is_one_line(
    afmoe: Path, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fuse("--model", afmoe, *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_every_option_of_mlx_lm_fuse_is_taken_or_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("mlx_lm.fuse")
    monkeypatch.setattr("sys.argv", ["fuse"])
    for name in vars(theirs.parse_arguments()):
        option = f"--{name.replace('_', '-')}"
        refused = fuse("--model", "nowhere/at/all", option).stderr
        assert "no option" not in refused, option
