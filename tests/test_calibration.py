"""Calibration: what it shows of a model, and conversions whose weights are chosen by a text."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from converted import WIDE, config_of, contents, stored
from grid import AFMOE_GRID, LFM2_GRID
from mlx.utils import tree_flatten
from tiny import ARCHITECTURES, tiny, tiny_folder, tokens

from afmoe_mlx import convert, load_model, upload
from afmoe_mlx.calibration import CalibratedEncoder, Calibration, calibrating
from afmoe_mlx.calibration.activations import Activations, most_bytes
from afmoe_mlx.calibration.text import batches, read_rows
from afmoe_mlx.conversion import writer
from afmoe_mlx.conversion.recipe import Recipe, Rule
from afmoe_mlx.errors import ConversionError, InputError
from afmoe_mlx.models import CausalLM, fuse
from afmoe_mlx.tokenizer import Tokenizer

CONFIGS = [("afmoe", name) for name in AFMOE_GRID] + [("lfm2_moe", name) for name in LFM2_GRID]
THREE = {"group_size": 32, "bits": 3, "mode": "affine"}
PROSE = "The wind fell before dawn, and hello, the world was still. Who heard it? Nobody did: 12 + 30 = 42.\n"


def model_of(model_type: str, name: str) -> CausalLM:
    return tiny(model_type, **{"afmoe": AFMOE_GRID, "lfm2_moe": LFM2_GRID}[model_type][name])


def difference(a: mx.array, b: mx.array) -> float:
    return mx.abs(a - b).max().item()


@pytest.mark.parametrize(("model_type", "name"), CONFIGS)
@pytest.mark.parametrize("all_experts", [True, False])
def test_the_output_is_the_same_while_all_experts_see_all_tokens(model_type: str, name: str, all_experts: bool) -> None:
    model, ids = model_of(model_type, name), tokens(2, 23)
    outside = model(ids)
    with calibrating(model, calibrate_all_experts=all_experts, observe=lambda *_: None):
        inside = model(ids)
    assert difference(inside, outside) < 2e-5
    assert mx.array_equal(model(ids), outside).item()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_leaving_restores_every_module_even_after_an_error(model_type: str) -> None:
    model = tiny(model_type)
    before = [(path, id(module)) for path, module in model.named_modules()]
    with pytest.raises(ZeroDivisionError), calibrating(model):
        raise ZeroDivisionError
    assert [(path, id(module)) for path, module in model.named_modules()] == before


def test_a_fused_model_is_refused_and_left_as_it_was() -> None:
    model, ids = fuse(tiny()), tokens(1, 5)
    before = model(ids)
    with pytest.raises(InputError, match="fuse=False"), calibrating(model, observe=lambda *_: None):
        pass
    assert mx.array_equal(model(ids), before).item()


class Shown:
    """What an observer is shown, by path and expert."""

    def __init__(self) -> None:
        self.x: dict[tuple[str, int | None], mx.array] = {}
        self.counts: dict[tuple[str, int | None], mx.array | None] = {}

    def __call__(self, path: str, expert: int | None, x: mx.array, counts: mx.array | None) -> None:
        self.x[path, expert], self.counts[path, expert] = x, counts


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_expert_and_every_linear_map_is_shown_every_token(model_type: str) -> None:
    model, shown = tiny(model_type), Shown()
    with calibrating(model, observe=shown):
        model(tokens(2, 23))
    paths = {path for path, _ in shown.x}
    expected = {
        name.removesuffix(".weight")
        for name, array in tree_flatten(model.parameters())
        if name.endswith("weight") and array.ndim in (2, 3) and not name.endswith("conv.conv.weight")
    }
    assert paths == expected - {"model.embed_tokens", "lm_head"} | ({"lm_head"} if "lm_head" in model else set())
    experts = [path for path in paths if ".experts." in path or ".switch_mlp." in path]
    assert len(experts) == 9  # three layers of three maps
    for path in experts:
        assert [shown.x[path, e].shape[0] for e in range(6)] == [46] * 6
        assert all((shown.counts[path, e] > 0).all().item() for e in range(6))
    assert all(x.shape[0] == 46 for x in shown.x.values())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_routed_only_counts_the_tokens_that_the_router_sent(model_type: str) -> None:
    model, everything, routed = tiny(model_type), Shown(), Shown()
    with calibrating(model, observe=everything):
        model(tokens(2, 23))
    with calibrating(model, calibrate_all_experts=False, observe=routed):
        model(tokens(2, 23))
    experts = [key for key in routed.counts if key[1] is not None and key[0].endswith("gate_proj")]
    assert sum((routed.counts[key] > 0).sum().item() for key in experts) == 3 * 46 * 2
    for key in experts:
        sent = routed.counts[key] > 0
        assert mx.array_equal(mx.where(sent, everything.counts[key], 0), routed.counts[key]).item()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_experts_inputs_are_those_of_its_own_weights(model_type: str) -> None:
    model, shown = tiny(model_type), Shown()
    with calibrating(model, observe=shown):
        model(tokens(1, 11))
    layer = model.model.layers[2]
    name, block = ("mlp", layer.mlp) if "mlp" in layer else ("feed_forward", layer.feed_forward)
    stack = "experts" if "experts" in block else "switch_mlp"
    path = f"model.layers.2.{name}.{stack}"
    for expert in range(6):
        x = shown.x[f"{path}.gate_proj", expert]
        gate, up = (x @ block[stack][part].weight[expert].T for part in ("gate_proj", "up_proj"))
        assert difference(shown.x[f"{path}.down_proj", expert], gate * mx.sigmoid(gate) * up) < 1e-5


@pytest.fixture(name="text")
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    lines = [{"text": PROSE * 3}, {"messages": [{"role": "user", "content": "hello"}]}, {"text": PROSE[40:]}]
    lines += [{"text": f"{i} worlds say {PROSE[i : 2 * i + 9]}"} for i in range(30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def source_folder(folder: Path, model_type: str, **changes: Any) -> Path:
    return tiny_folder(folder / "source", model_type, **WIDE[model_type] | changes)


def logits_on(folder: Path, rows: list[list[int]]) -> np.ndarray:
    model, _ = load_model(folder)
    return np.concatenate([np.array(model(mx.array([row]))[0]) for row in rows])


VARIANTS = {
    "afmoe": [
        {},
        {"attention_bias": True, "num_shared_experts": 2, "tie_word_embeddings": True},
        {"num_shared_experts": 0, "mup_enabled": True, "num_dense_layers": 0},
        {"hidden_act": "gelu", "score_func": "softmax", "num_dense_layers": 2},
    ],
    "lfm2_moe": [
        {},
        {"conv_bias": True, "tie_word_embeddings": False},
        {"use_expert_bias": False, "num_dense_layers": 0},
    ],
}
CASES = [(model_type, changes) for model_type in ARCHITECTURES for changes in VARIANTS[model_type]]


@pytest.mark.parametrize("method", ["scales", "gptq"])
@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_logits_come_closer_to_the_originals_than_plain_rounding(
    tmp_path: Path, text: Path, model_type: str, changes: dict[str, Any], method: str
) -> None:
    source = source_folder(tmp_path, model_type, **changes)
    recipe = Recipe("test", THREE, (Rule(("model.embed_tokens",), None),))
    plain = convert(source, tmp_path / "plain", recipe=recipe)
    chosen = Calibration(text=text, method=method, tokens=800)
    ours = convert(source, tmp_path / "ours", recipe=recipe, calibrate=chosen)
    assert config_of(ours) == config_of(plain)
    ours_stored, plain_stored = stored(ours), stored(plain)
    assert {k: (v.shape, v.dtype) for k, v in ours_stored.items()} == {
        k: (v.shape, v.dtype) for k, v in plain_stored.items()
    }
    for name, array in plain_stored.items():
        if name.endswith(("norm.weight", "gate.weight", ".bias", "expert_bias", "embed_tokens.weight")):
            assert mx.array_equal(ours_stored[name], array).item(), name
    rows = read_rows(chosen, Tokenizer.from_folder(source))
    exact = logits_on(source, rows)
    errors = [np.square(logits_on(folder, rows) - exact).mean() for folder in (ours, plain)]
    assert errors[0] < (0.7 if method == "gptq" else 0.98) * errors[1]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_same_bytes_from_the_same_text_and_seed(tmp_path: Path, text: Path, model_type: str) -> None:
    source = source_folder(tmp_path, model_type)
    chosen = Calibration(text=text, tokens=100)
    first, second = (convert(source, tmp_path / name, group_size=32, calibrate=chosen) for name in ("first", "second"))
    assert contents(first) == contents(second)
    other = convert(source, tmp_path / "other", group_size=32, calibrate=Calibration(text=text, tokens=100, seed=1))
    assert contents(other) != contents(first)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("at", [3, 20, 45])
def test_interrupted_and_run_again_the_bytes_are_those_of_an_undisturbed_run(
    tmp_path: Path, text: Path, model_type: str, at: int
) -> None:
    source = source_folder(tmp_path, model_type)
    options = {"bits": 3, "group_size": 32, "calibrate": Calibration(text=text, tokens=200)}
    whole = convert(source, tmp_path / "whole", **options)
    left = at

    def stop(_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, on_progress=stop, **options)
    assert not target.exists()
    assert contents(convert(source, target, **options)) == contents(whole)


def test_hidden_states_of_earlier_layers_make_room(tmp_path: Path) -> None:
    folder, most = tmp_path / "states", most_bytes([(2, 3), (1, 5)], 4)
    kept = Activations(folder)
    for index in range(12):
        kept.write(index, [mx.full((2, 3, 4), index), mx.full((1, 5, 4), -index)])
        assert sum(path.stat().st_size for path in folder.iterdir()) <= most
    assert [batch.shape for batch in kept.read(11)] == [(2, 3, 4), (1, 5, 4)]
    assert all((kept.read(index)[0] == index).all().item() for index in (10, 11))
    assert [index for index in range(14) if index in kept] == [10, 11]


@pytest.mark.parametrize("damaged", ["a finished tensor", "all hidden states", "the newest hidden states"])
def test_what_is_needed_of_earlier_layers_is_made_again(tmp_path: Path, text: Path, damaged: str) -> None:
    """A restart many layers back from the hidden states that are kept."""
    layers = ["sliding_attention", "full_attention"] * 4
    source = source_folder(tmp_path, "afmoe", num_hidden_layers=8, layer_types=layers)
    options = {"bits": 3, "group_size": 32, "calibrate": Calibration(text=text, tokens=50, method="scales")}
    whole = convert(source, tmp_path / "whole", **options)

    def stop(progress: Any) -> None:
        if progress.layer == 7:
            raise KeyboardInterrupt

    target, partial = tmp_path / "out", tmp_path / ".out.partial"
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, on_progress=stop, **options)
    states = sorted((partial / "calibration").glob("layer-*.safetensors"))
    assert [path.stem for path in states] == ["layer-00006", "layer-00007"]
    if damaged == "a finished tensor":
        (path,) = (partial / "model").glob("*.safetensors")
        begin = stored_place(path, "model.layers.1.self_attn.q_proj.weight")
        content = bytearray(path.read_bytes())
        content[begin] ^= 1
        path.write_bytes(content)
    for path in states if damaged == "all hidden states" else states[-1:]:
        path.unlink()
    assert contents(convert(source, target, **options)) == contents(whole)


def test_a_layer_is_noted_as_finished_before_the_next_one_begins(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs go when the next but one begins: nothing must have to go back to them."""
    monkeypatch.setattr(writer, "SYNC_SECONDS", 1e9)
    source, journal = source_folder(tmp_path, "afmoe"), tmp_path / ".out.partial" / "journal.jsonl"
    encode, seen = CalibratedEncoder.encode, []

    def looked(self: CalibratedEncoder, index: int | None, weights: Any) -> Any:
        seen.append({json.loads(line)["tensor"] for line in journal.read_text().splitlines()[1:]})
        return encode(self, index, weights)

    monkeypatch.setattr(CalibratedEncoder, "encode", looked)
    names = stored(convert(source, tmp_path / "out", group_size=32, calibrate=Calibration(text=text, tokens=50)))
    before = ((), ("model.embed_tokens.",), ("model.layers.0.",), ("model.layers.1.",))
    marks = [sum(before[: i + 1], ()) for i in range(len(before))]
    assert seen == [{name for name in names if name.startswith(mark)} for mark in marks]


def stored_place(path: Path, name: str) -> int:
    """The first byte of a tensor in a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return 8 + length + json.loads(content[8 : 8 + length])[name]["data_offsets"][0]


def test_room_for_hidden_states_is_counted_before_anything_is_written(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_folder(tmp_path, "afmoe")
    options = {"group_size": 32, "calibrate": Calibration(text=text, tokens=500)}
    written = sum(path.stat().st_size for path in convert(source, tmp_path / "plain", group_size=32).iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=written))
    with pytest.raises(ConversionError, match=r"for what is written and 0\.5 MB for the calibration's hidden states"):
        convert(source, tmp_path / "out", **options)
    assert not (tmp_path / ".out.partial").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=written + 2 * 500 * 128 * 4 + 20_000))
    most = 0

    def look(_: object) -> None:
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in (tmp_path / ".out.partial" / "calibration").glob("*")))

    convert(source, tmp_path / "out", on_progress=look, **options)
    assert 500 * 128 * 4 < most <= 2 * 500 * 128 * 4 + 20_000


def test_a_conversion_is_not_continued_with_another_calibration(tmp_path: Path, text: Path) -> None:
    source = source_folder(tmp_path, "afmoe")

    def stop(progress: Any) -> None:
        if progress.layer:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", calibrate=Calibration(text=text), group_size=32, on_progress=stop)
    for other in (Calibration(text=text, method="scales"), Calibration(text=text, all_experts=False), None):
        with pytest.raises(ConversionError, match="calibration"):
            convert(source, tmp_path / "out", calibrate=other, group_size=32)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_a_recipe_keeps_or_stores_in_another_mode_is_as_without_calibration(
    tmp_path: Path, text: Path, model_type: str
) -> None:
    source = source_folder(tmp_path, model_type)
    fp4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    rules = (Rule(("*.up_proj", "model.embed_tokens"), fp4), Rule(("*.down_proj", "*.v_proj"), None))
    recipe = Recipe("test", THREE, rules)
    plain = stored(convert(source, tmp_path / "plain", recipe=recipe))
    ours = stored(convert(source, tmp_path / "ours", recipe=recipe, calibrate=Calibration(text=text, tokens=200)))
    assert plain.keys() == ours.keys()
    same = {name for name in plain if mx.array_equal(plain[name], ours[name]).item()}
    marks = ("up_proj", "down_proj", "v_proj", "embed", "norm", "router", ".gate.", "conv.conv")
    assert {name for name in plain if any(mark in name for mark in marks)} <= same
    assert not any("gate_proj.weight" in name or "o_proj.weight" in name for name in same)


@pytest.mark.parametrize("recipe", ["mxfp4", "nvfp4"])
def test_a_recipe_with_nothing_affine_is_refused_by_its_mode(tmp_path: Path, text: Path, recipe: str) -> None:
    with pytest.raises(ConversionError, match=f"{recipe}.*expected a recipe of affine bits"):
        convert(source_folder(tmp_path, "afmoe"), tmp_path / "out", recipe=recipe, calibrate=Calibration(text=text))


@pytest.mark.parametrize("changes", [{"method": "magic"}, {"tokens": 0}])
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match="expected"):
        Calibration(**changes)


def test_a_text_is_chosen_by_its_path_and_the_packages_by_true(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_folder(tmp_path, "afmoe")
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {"group_size": 32}
    expected = contents(convert(source, tmp_path / "expected", calibrate=Calibration(text=text), **options))
    for name, given in {"path": text, "string": str(text), "home": f"~/{text.name}"}.items():
        assert contents(convert(source, tmp_path / name, calibrate=given, **options)) == expected
    assert contents(convert(source, tmp_path / "inside", calibrate=Calibration(text=str(text)), **options)) == expected
    plain = contents(convert(source, tmp_path / "plain", **options))
    assert contents(convert(source, tmp_path / "none", calibrate=False, **options)) == plain
    assert Calibration.of(True) == Calibration()


@pytest.mark.parametrize(("given", "words"), [("mine.txt", "of mine.txt"), (True, "of the built-in text")])
def test_an_uploads_card_says_what_convert_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, words: str
) -> None:
    monkeypatch.setattr("afmoe_mlx.conversion.publication._send", lambda folder, repo: repo)
    folder = convert(source_folder(tmp_path, "afmoe"), tmp_path / "out", group_size=32)
    upload(folder, "you/tiny", calibrate=given)
    assert f"8,192 tokens {words}" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("given", [3, 1, ["notes.txt"], b"notes.txt", Calibration])
def test_what_is_no_calibration_is_refused_in_a_line(tmp_path: Path, given: Any) -> None:
    with pytest.raises(InputError, match="expected a Calibration, a text file's path, or True") as caught:
        convert(source_folder(tmp_path, "afmoe"), tmp_path / "out", calibrate=given)
    with pytest.raises(InputError, match="expected a Calibration"):
        upload(tmp_path, "you/tiny", calibrate=given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / ".out.partial").exists()


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    chosen = Calibration(text=tmp_path / "missing.txt")
    with pytest.raises(InputError, match=r"missing\.txt"):
        convert(source_folder(tmp_path, "afmoe"), tmp_path / "out", calibrate=chosen)


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_of_folder(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny_folder(tmp_path_factory.mktemp("tokenizer") / "model"))


@pytest.mark.parametrize("count", [1, 50, 700])
def test_as_many_tokens_are_used_as_asked_for(tokenizer: Tokenizer, text: Path, count: int) -> None:
    rows = read_rows(Calibration(text=text, tokens=count), tokenizer)
    assert sum(map(len, rows)) == count
    assert rows == read_rows(Calibration(text=text, tokens=count), tokenizer)
    made = batches(rows)
    assert sorted(row for batch in made for row in batch) == sorted(rows)
    assert all(len({len(row) for row in batch}) == 1 for batch in made)


def test_the_text_of_the_package_is_long_and_mixed_enough(tokenizer: Tokenizer) -> None:
    rows = read_rows(Calibration(tokens=10**9), tokenizer)
    text = tokenizer.decode([token for row in rows for token in row])
    assert 30_000 < len(text.encode()) < 70_000
    assert all(mark in text for mark in ("def ", "<|im_start|>", "SELECT", "日", "ß", "é", "и", "- ", "| ", "∑"))
