"""Conversions whose weights are chosen by a text."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afmoe_mlx import convert, load_model
from afmoe_mlx.calibration import CalibratedEncoder, Calibration
from afmoe_mlx.calibration.activations import Activations, most_bytes
from afmoe_mlx.calibration.text import read_rows
from afmoe_mlx.conversion import writer
from afmoe_mlx.conversion.recipe import Recipe, Rule
from afmoe_mlx.errors import ConversionError
from afmoe_mlx.tokenizer import Tokenizer
from helpers.calibrated import CASES, source_folder
from helpers.converted import config_of, contents, stored
from helpers.interruptions import Stop
from helpers.tiny import ARCHITECTURES

THREE = {"group_size": 32, "bits": 3, "mode": "affine"}


def logits_on(folder: Path, rows: list[list[int]]) -> np.ndarray:
    model, _ = load_model(folder)
    return np.concatenate([np.array(model(mx.array([row]))[0]) for row in rows])


# How a layer is gone through and how its weights are chosen are apart: GPTQ, which does more, is tried on every kind.
@pytest.mark.parametrize(
    ("model_type", "changes", "method"),
    [*((*case, "gptq") for case in CASES), *((model_type, {}, "scales") for model_type in ARCHITECTURES)],
)
def test_logits_come_closer_to_the_originals_than_plain_rounding(
    tmp_path: Path, text: Path, model_type: str, changes: dict[str, Any], method: str
) -> None:
    source = source_folder(tmp_path, model_type, width=64, **changes)
    recipe = Recipe("test", THREE, (Rule(("model.embed_tokens",), None),))
    plain = convert(source, tmp_path / "plain", recipe=recipe)
    chosen = Calibration(text=text, method=method, tokens=150)
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
def test_interrupted_and_run_again_the_bytes_are_those_of_an_undisturbed_run(
    tmp_path: Path, text: Path, model_type: str
) -> None:
    source = source_folder(tmp_path, model_type)
    options = {"bits": 3, "group_size": 32, "calibrate": Calibration(text=text, tokens=60)}
    whole = contents(convert(source, tmp_path / "whole", **options))
    for at in (3, 20, 45):
        target = tmp_path / f"out-{at}"
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, on_progress=Stop(at, KeyboardInterrupt()), **options)
        assert not target.exists()
        assert contents(convert(source, target, **options)) == whole


def test_hidden_states_of_earlier_layers_make_room(tmp_path: Path) -> None:
    folder, most = tmp_path / "states", most_bytes([(2, 3), (1, 5)], 4)
    kept = Activations(folder)
    for index in range(12):
        kept.write(index, [mx.full((2, 3, 4), index), mx.full((1, 5, 4), -index)])
        assert sum(path.stat().st_size for path in folder.iterdir()) <= most
    assert [batch.shape for batch in kept.read(11)] == [(2, 3, 4), (1, 5, 4)]
    assert all((kept.read(index)[0] == index).all().item() for index in (10, 11))
    assert [index for index in range(14) if index in kept] == [10, 11]


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A source, its conversion, the options of that; and beside it, as "out", one stopped in the last layer."""
    folder = tmp_path_factory.mktemp("six")
    layers = ["sliding_attention", "full_attention"] * 3
    source = source_folder(folder, "afmoe", num_hidden_layers=6, layer_types=layers)
    options = {"bits": 3, "group_size": 32, "calibrate": Calibration(text=text, tokens=50, method="scales")}

    def stop(progress: Any) -> None:
        if progress.layer == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, folder / "out", on_progress=stop, **options)
    return source, convert(source, folder / "whole", **options), options


@pytest.mark.parametrize("damaged", ["a finished tensor", "all hidden states", "the newest hidden states"])
def test_what_is_needed_of_earlier_layers_is_made_again(
    six_layers: tuple[Path, Path, dict[str, Any]], tmp_path: Path, damaged: str
) -> None:
    """A restart many layers back from the hidden states that are kept."""
    source, whole, options = six_layers
    target, partial = tmp_path / "out", tmp_path / ".out.partial"
    shutil.copytree(whole.with_name(".out.partial"), partial)
    states = sorted((partial / "calibration").glob("layer-*.safetensors"))
    assert [path.stem for path in states] == ["layer-00004", "layer-00005"]
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
    with pytest.raises(ConversionError, match=r"for what is written and 0\.1 MB for the calibration's files"):
        convert(source, tmp_path / "out", **options)
    assert not (tmp_path / ".out.partial").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=written + 2 * 500 * 32 * 4 + 20_000))
    most = 0

    def look(_: object) -> None:
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in (tmp_path / ".out.partial" / "calibration").glob("*")))

    convert(source, tmp_path / "out", on_progress=look, **options)
    assert 500 * 32 * 4 < most <= 2 * 500 * 32 * 4 + 20_000


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
    ours = stored(convert(source, tmp_path / "ours", recipe=recipe, calibrate=Calibration(text=text, tokens=60)))
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
