"""`afmoe-mlx convert`: what it would write is what it writes, and each of its options does what it says."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from afmoe_mlx import convert, load_model
from afmoe_mlx.command_line import progress
from afmoe_mlx.conversion.dry_run import ranges
from afmoe_mlx.conversion.pipeline import ConversionProgress
from afmoe_mlx.conversion.recipes import BUILT_IN
from afmoe_mlx.models import make_model, read_config
from helpers.command_line import invoke
from helpers.converted import WIDE, config_of, contents, stored
from helpers.hub_server import REPO, FakeHub, use_hub
from helpers.tiny import ARCHITECTURES, tiny_folder

TARGET = "someone/tiny-4bit"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("source") / "model", request.param, **WIDE[request.param])


@pytest.fixture(scope="module")
def afmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    changes = WIDE["afmoe"] | {"num_hidden_layers": 4, "layer_types": layers}
    return tiny_folder(tmp_path_factory.mktemp("afmoe") / "model", **changes)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import close_session

    with FakeHub(tmp_path / "served") as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server
        close_session()


class Result:
    """What `afmoe-mlx convert` printed, and its exit status."""

    def __init__(self, *arguments: object) -> None:
        result = invoke(["convert", *map(str, arguments)])
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        return json.loads(self.out)


def written_bytes(folder: Path) -> int:
    return sum(array.nbytes for array in stored(folder).values())


FORMS = {
    "plain": [],
    "4 bits": ["-q"],
    "mxfp8 in bfloat16": ["-q", "--q-mode", "mxfp8", "--dtype", "bfloat16"],
    **{recipe: ["--recipe", recipe] for recipe in BUILT_IN},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_dry_run_tells_the_bytes_that_are_then_written(source: Path, tmp_path: Path, form: str) -> None:
    command = ("--hf-path", source, "--mlx-path", tmp_path / "out", "--json", *FORMS[form])
    told = Result(*command, "--dry-run").json
    assert not list(tmp_path.iterdir())
    made = Result(*command).json
    assert told["bytes"] == written_bytes(tmp_path / "out")
    assert told["source_bytes"] == written_bytes(source)
    assert told["bits_per_weight"] == pytest.approx(made["bits_per_weight"])
    assert made["path"] == str(tmp_path / "out")
    assert sum(tensor["bytes"] for tensor in told["tensors"]) == told["bytes"]


@pytest.mark.parametrize("form", FORMS)
def test_a_dry_run_tells_every_tensor_with_its_format(source: Path, tmp_path: Path, form: str) -> None:
    told = Result("--hf-path", source, "--mlx-path", tmp_path / "out", "--dry-run", "--json", *FORMS[form]).json
    tensors = {entry["name"]: entry for entry in told["tensors"]}
    parameters = dict(tree_flatten(make_model(read_config(config_of(source))).parameters()))
    assert {name: tuple(entry["shape"]) for name, entry in tensors.items()} == {
        name.removesuffix(".weight"): array.shape for name, array in parameters.items()
    }
    Result("--hf-path", source, "--mlx-path", tmp_path / "out", *FORMS[form])
    quantization = config_of(tmp_path / "out").get("quantization", {})
    default = {key: quantization[key] for key in ("bits", "group_size", "mode") if key in quantization}
    quantized = {name.removesuffix(".scales") for name in stored(tmp_path / "out") if name.endswith(".scales")}
    for name, entry in tensors.items():
        assert entry["dtype"] == "float32"
        assert entry["format"] == (quantization.get(name, default) if name in quantized else None)


def test_a_quantized_source_is_told_as_such(afmoe: Path, tmp_path: Path) -> None:
    quantized = convert(afmoe, tmp_path / "q", recipe="mixed_3_6")
    copied = Result("--hf-path", quantized, "--dry-run", "--json").json
    plain = Result("--hf-path", quantized, "--dry-run", "--json", "-d", "--dtype", "bfloat16").json
    assert (copied["bytes"], copied["source_bytes"]) == (written_bytes(quantized),) * 2
    assert plain["bits_per_weight"] == pytest.approx(16, abs=0.01)
    for told, becomes in ((copied, "6 bits, groups of 64"), (plain, "bfloat16")):
        head = next(entry for entry in told["tensors"] if entry["name"] == "lm_head")
        assert head["shape"] == [config_of(afmoe)["vocab_size"], 128]
        assert head["dtype"] == "6 bits, groups of 64"
        assert head["becomes"] == becomes


def test_the_table_folds_layers_that_are_alike(afmoe: Path) -> None:
    table = Result("--hf-path", afmoe, "--recipe", "mixed_4_6", "--dry-run").out
    headings = [line for line in table.splitlines() if line.startswith("layer ") or " layers: " in line]
    assert headings == ["layer 0", "3 layers: 1-3"]
    assert table.count("mlp.experts.up_proj") == 1
    verbose = Result("--hf-path", afmoe, "--recipe", "mixed_4_6", "--dry-run", "--verbose").out
    assert verbose.count("mlp.experts.up_proj") == 3
    assert "model.layers.3.mlp.expert_bias" in verbose
    last = "bits a weight. Nothing was written."
    assert table.splitlines()[-1] == verbose.splitlines()[-1]
    assert table.splitlines()[-1].endswith(last)


@given(st.sets(st.integers(0, 99), min_size=1))
def test_ranges_name_exactly_their_numbers(numbers: set[int]) -> None:
    found: set[int] = set()
    for part in ranges(numbers).split(", "):
        first, _, last = part.partition("-")
        assert not found or int(first) > max(found) + 1
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers


def test_a_dry_run_from_the_hub_fetches_no_weights(hub: FakeHub, afmoe: Path, tmp_path: Path) -> None:
    hub.add(REPO, contents(afmoe))
    told = Result("--hf-path", REPO, "--recipe", "4bit", "--dry-run", "--json").json
    assert told["bytes"] == Result("--hf-path", afmoe, "--recipe", "4bit", "--dry-run", "--json").json["bytes"]
    assert all(request.range for request in hub.requests if request.path.endswith(".safetensors"))
    assert not list((tmp_path / "home").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "4bit", "-q", "--q-bits", "4"],
        ["--recipe", "4bit", "--q-group-size", "32"],
        ["--recipe", "4bit", "-q", "--q-mode", "mxfp4"],
        ["--recipe", "4bit", "-d"],
        ["--verbose"],
        ["--calibrate"],
        ["-d", "--calibrate"],
        ["-q", "--calibration-tokens", "100"],
        ["-q", "--calibrate-routed"],
        ["-q", "--calibrate", "--calibration-method", "luck"],
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(afmoe: Path, arguments: list[str]) -> None:
    result = Result("--hf-path", afmoe, *arguments)
    assert result.code == 2
    assert result.out == ""


def test_mlx_lms_name_for_a_recipe_is_understood(afmoe: Path, tmp_path: Path) -> None:
    ours = Result("--hf-path", afmoe, "--mlx-path", tmp_path / "a", "--recipe", "mixed_3_6")
    theirs = Result("--hf-path", afmoe, "--mlx-path", tmp_path / "b", "-q", "--quant-predicate", "mixed_3_6")
    assert (ours.code, theirs.code) == (0, 0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["convert", "dry run"])
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("5bit", "recipe is '5bit': expected one of 4bit, "),
        ("{}/none.toml", "expected one of 4bit, "),
        ("{}/bad.toml", "bad.toml: default.bits is 7: expected 2, 3, 4, 5, 6, 8 with mode affine"),
        ("{}", "cannot be read: Is a directory"),
    ],
)
def test_a_bad_recipe_is_one_line_and_leaves_nothing(
    afmoe: Path, tmp_path: Path, recipe: str, words: str, more: list[str]
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "bad.toml").write_text("[default]\nbits = 7")
    target = tmp_path / "out"
    result = Result("--hf-path", afmoe, "--mlx-path", target, "--recipe", recipe.format(tmp_path / "recipes"), *more)
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert len(result.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["recipes"]


def test_a_recipe_file_that_tries_to_quantize_routers_is_warned_of(afmoe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "routers.toml"
    recipe.write_text('[default]\nbits = 4\n[[rules]]\nmodules = "*.router.gate"\nbits = 8\n')
    result = Result("--hf-path", afmoe, "--mlx-path", tmp_path / "out", "--recipe", recipe)
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"{recipe}: rule 1: quantizes routers" in warnings[0]
    assert config_of(tmp_path / "out")["quantization"]["model.layers.1.mlp.router.gate"]["bits"] == 8
    load_model(tmp_path / "out")


def test_the_demo_is_a_source_too(tmp_path: Path) -> None:
    assert Result("--hf-path", "demo", "--mlx-path", tmp_path / "plain", "-d").code == 0
    assert "quantization" not in config_of(tmp_path / "plain")
    again = Result("--hf-path", "demo", "--mlx-path", tmp_path / "q", "-q")
    assert again.code == 1
    assert "is quantized already" in again.err
    assert len(again.err.splitlines()) == 1
    assert Result("--hf-path", "demo", "--revision", "main").code == 1


def test_low_disk_leaves_no_weights_of_the_source_behind(hub: FakeHub, afmoe: Path, tmp_path: Path) -> None:
    hub.add(REPO, contents(afmoe))
    made = Result("--hf-path", REPO, "--mlx-path", tmp_path / "out", "-q", "--low-disk", "--json").json
    assert made["bytes"] > 0
    assert contents(tmp_path / "out") == contents(convert(afmoe, tmp_path / "local"))
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_what_is_uploaded_has_a_card_with_recipe_revision_and_quality(
    hub: FakeHub, afmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "held_out.txt").write_text("A short text that no model has seen.")
    monkeypatch.setattr("afmoe_mlx.evaluation.pipeline.DEFAULT_TEXT", tmp_path / "held_out.txt")
    card = b"---\nlicense: mit\n---\n# Source\n"
    commit = hub.add(REPO, contents(afmoe) | {"README.md": card})
    command = ("--hf-path", REPO, "--mlx-path", tmp_path / "out", "--recipe", "mixed_4_6", "--upload-repo", TARGET)
    made = Result(*command, "--json").json
    assert made["uploaded_to"] == f"{hub.url}/{TARGET}"
    assert {name: body for name, body in hub.content(TARGET).items() if name != ".gitattributes"} == contents(
        tmp_path / "out"
    )
    text = (tmp_path / "out" / "README.md").read_text()
    for words in ("license: mit", f"base_model: {REPO}", "mixed_4_6", commit, "Perplexity", "KL divergence"):
        assert words in text


def test_who_is_not_logged_in_is_told_before_anything_is_converted(
    hub: FakeHub, afmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = Result("--hf-path", afmoe, "--mlx-path", tmp_path / "out", "-q", "--upload-repo", TARGET)
    assert result.code == 1
    assert "hf auth login" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_calibrating_gives_other_weights_of_the_same_size(afmoe: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A text that says nothing of note, to be read by experts. " * 4)
    command = ("--hf-path", afmoe, "--recipe", "3bit", "--json")
    told = Result(*command, "--calibrate", text, "--dry-run").json
    made = Result(*command, "--mlx-path", tmp_path / "a", "--calibrate", text, "--calibration-method", "scales").json
    plain = Result(*command, "--mlx-path", tmp_path / "b").json
    assert made["bytes"] == plain["bytes"]
    assert told["bytes"] == written_bytes(tmp_path / "a")
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "b").keys()
    assert contents(tmp_path / "a")["model.safetensors"] != contents(tmp_path / "b")["model.safetensors"]
    assert config_of(tmp_path / "a") == config_of(tmp_path / "b")


@pytest.mark.parametrize("place", ["end", "middle"])
def test_calibrating_takes_a_text_or_none(afmoe: Path, tmp_path: Path, place: str) -> None:
    rest = ["--calibrate", "--recipe", "4bit"] if place == "middle" else ["--recipe", "4bit", "--calibrate"]
    assert Result("--hf-path", afmoe, "--dry-run", "--json", *rest).json["recipe"] == "by the recipe 4bit"
    missing = Result("--hf-path", afmoe, "--mlx-path", tmp_path / "out", "-q", "--calibrate", tmp_path / "none.txt")
    assert missing.code == 1
    assert "none.txt" in missing.err
    assert len(missing.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "tokens", "words"),
    [
        ("A text of some tokens. " * 40, 100, "Calibrated with 100 tokens."),
        ("ab", 100, "Calibrated with 2 tokens."),
        ("", 100, "holds no text"),
        (b"\xff", 100, "not UTF-8"),
        (None, 100, "cannot be read"),
    ],
    ids=["long", "short", "empty", "no text", "missing"],
)
def test_a_dry_run_reads_the_text_to_calibrate_with_as_the_conversion_does(
    afmoe: Path, tmp_path: Path, text: str | bytes | None, tokens: int, words: str
) -> None:
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    options = ["--recipe", "4bit", "--calibrate", path, "--calibration-tokens", tokens]
    command = ("--hf-path", afmoe, "--mlx-path", tmp_path / "out", *options)
    told = Result(*command, "--dry-run")
    assert not (tmp_path / "out").exists()
    if words.startswith("Calibrated"):
        assert words in told.out
        found = Result(*command, "--dry-run", "--json").json["calibration_tokens"]
        assert f"{found} tokens" in words
        return
    made = Result(*command)
    assert (told.code, told.out, told.err) == (1, "", made.err)
    assert words in told.err
    assert len(told.err.splitlines()) == 1


def test_a_dry_run_refuses_a_recipe_that_cannot_be_calibrated(afmoe: Path) -> None:
    told = Result("--hf-path", afmoe, "--recipe", "mxfp4", "--calibrate", "--dry-run")
    assert (told.code, told.out) == (1, "")
    assert "expected a recipe of affine bits" in told.err
    assert Result("--hf-path", afmoe, "--recipe", "mxfp4", "--dry-run", "--json").json["calibration_tokens"] is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bytes_layers_and_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    with progress.conversion_progress() as shown:
        shown.fetched(1_000_000, 4_000_000)
        shown.converted(ConversionProgress(2_500_000_000, 10_000_000_000, 3, 32))
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    for words in ("converting", "2.5/10.0 GB", "layer 3 of 32", "downloading", "1.0/4.0 MB"):
        assert words in text


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 29.0, 60.0, 61.0, 120.0, 200.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress.conversion_progress() as shown:
        for gigabytes in (1, 2, 3, 4, 5, 10):
            shown.converted(ConversionProgress(gigabytes * 10**9, 10**10, gigabytes, 32))
    assert capsys.readouterr().err.splitlines() == [
        "converting: 3.0 GB of 10.0 GB, layer 3 of 32, about 4 min left",
        "converting: 5.0 GB of 10.0 GB, layer 5 of 32, about 2 min left",
    ]


def test_a_short_conversion_says_only_what_it_wrote(afmoe: Path, tmp_path: Path) -> None:
    result = Result("--hf-path", afmoe, "--mlx-path", tmp_path / "out", "-q")
    assert result.out == ""
    assert [line.split(" (")[0] for line in result.err.splitlines()] == [f"Wrote {tmp_path / 'out'}"]
