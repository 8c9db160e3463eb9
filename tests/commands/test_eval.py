"""`afmoe-mlx eval`: one object or a table, a picture, the tasks of mlx-lm, and a mistake in one line."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.evaluation import tasks
from afmoe_mlx.evaluation.subject import Subject
from helpers.command_line import invoke
from helpers.pairs import LENGTH, Pair

KEYS = {
    "perplexity",
    "kl_mean",
    "kl_median",
    "kl_p99",
    "top1_agreement",
    "expert_overlap",
    "bits_per_weight",
}
SMALL = ("--sequence-length", str(LENGTH), "-m", "80")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"), "afmoe")


@pytest.fixture
def compared(pair: Pair) -> tuple[str, ...]:
    return (str(pair.quantized), "--reference", str(pair.plain), "--text", str(pair.text), *SMALL)


def run(*arguments: str) -> Any:
    return invoke(["eval", *arguments])


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))


def test_json_is_one_object_with_every_figure(compared: tuple[str, ...], pair: Pair) -> None:
    result = run(*compared, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    value = json.loads(result.stdout)
    assert all(isinstance(value[key], float) for key in KEYS)
    assert (value["model"], value["reference"]) == (str(pair.quantized), str(pair.plain))
    assert list(value["expert_overlap_by_layer"]) == ["1", "2", "3"]
    assert value["weight_errors"]["router"] == 0 < value["weight_errors"]["experts"]


def test_without_a_reference_what_needs_one_is_null(pair: Pair) -> None:
    value = json.loads(run(str(pair.quantized), *SMALL, "--json").stdout)
    assert value.keys() >= KEYS
    assert {key for key in KEYS if value[key] is not None} == {"perplexity", "bits_per_weight"}
    assert (value["text"], value["tokens"]) == ("built-in", 77)


def test_a_person_gets_a_table(compared: tuple[str, ...], pair: Pair) -> None:
    found, alone = run(*compared).stdout, run(str(pair.quantized), *SMALL).stdout
    for name in ("Perplexity", "Bits per weight", "KL divergence, 99th percentile", "Relative error, experts"):
        assert sum(line.strip().startswith(name) for line in found.splitlines()) == 1
    assert "Same experts chosen, by layer" in found
    assert [line.split("  ")[1] for line in alone.splitlines()[2:]] == ["Perplexity", "Bits per weight"]


def test_the_demo_is_evaluated_against_itself_by_name() -> None:
    value = json.loads(run("demo", "--reference", "demo", "-m", "64", "--json").stdout)
    assert (value["kl_mean"], value["top1_agreement"], value["expert_overlap"]) == (0, 1, 1)
    assert 4 < value["bits_per_weight"] < 5


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_is_written_beside_and_renamed(compared: tuple[str, ...], tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"a $b_1$.{suffix}"
    result = run(*compared, "--plot", str(path), "--json")
    assert (result.exit_code, result.stderr) == (0, f"Wrote {path}\n")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    json.loads(result.stdout)


@pytest.mark.parametrize(
    ("name", "found"),
    [("a.gif", "cannot be written as .gif"), ("a", "as this"), ("no/a.png", "is no folder"), (".png", "as this")],
)
def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_computed(
    compared: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: str
) -> None:
    monkeypatch.setattr(Subject, "find", lambda *_, **__: pytest.fail("evaluated"))
    result = run(*compared, "--plot", str(tmp_path / name))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert found in line


def test_a_folder_that_cannot_be_written_to_is_refused_too(
    compared: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "find", lambda *_, **__: pytest.fail("evaluated"))
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    result = run(*compared, "--plot", str(tmp_path / "a.png"))
    assert result.exit_code == 1
    assert "cannot be written to" in result.stderr


@pytest.mark.parametrize("option", ["--text", "--plot"])
def test_a_path_without_a_name_or_of_nobodys_home_is_one_line(compared: tuple[str, ...], option: str) -> None:
    for path in ("", "~nobody-of-this-name/a.png"):
        result = run(*compared, option, path)
        (line,) = result.stderr.splitlines()
        assert (result.exit_code, line[:7]) == (1, "error: ")


def test_a_terminal_gets_plain_text_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes a table bold as a terminal does
    assert "\x1b" not in run(str(pair.quantized), *SMALL).stdout


def test_without_matplotlib_one_line_says_what_to_install(
    compared: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "matplotlib")
    result = run(*compared, "--plot", str(tmp_path / "a.png"))
    assert result.exit_code == 1
    assert result.stderr == "error: a plot needs matplotlib, which is not installed: pip install 'afmoe-mlx[plot]'\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demo", "--plot", "a.png"],
        ["demo", "--limit", "3"],
        ["demo", "--force"],
        ["demo", "--num-shots", "3"],
        ["demo", "--tasks", "a", "--reference", "demo"],
        ["demo", "--tasks", "a", "--text", "a.txt"],
        ["demo", "--tasks", "a", "-m", "3"],
        ["demo", "--max-tokens", "many"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["demo", "--revision", "main"], "no revisions"),
        (["demo", "--text", "absent.txt"], "absent.txt: cannot be read"),
        (["demo", "--sequence-length", "1"], "sequence_length is 1"),
        (["no-such-model"], "no model called"),
        (["demo", "--reference", "./absent"], "no such folder"),
        (["demo", "--tasks", " , "], "expected names of tasks"),
        (["demo", "--tasks", "--apply"], "expected names of tasks"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], found: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert found in line


def test_tasks_without_lm_eval_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "lm_eval")
    result = run("demo", "--tasks", "arc_easy")
    assert result.exit_code == 1
    assert result.stderr == "error: --tasks needs lm_eval, which is not installed: pip install 'mlx-lm[evaluate]'\n"


RESULTS = {"arc_easy": {"alias": "arc_easy", "acc,none": 0.25, "acc_stderr,none": 0.125, "acc_norm,none": 0.5}}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run instead of mlx-lm's, each of which leaves results as mlx-lm does."""
    seen: list[list[str]] = []

    def fake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        if "broken" in command:
            return subprocess.CompletedProcess(command, 1)
        output = Path(command[command.index("--output-dir") + 1])
        (output / "eval_model_arc_easy").write_text(json.dumps(RESULTS))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(subprocess, "run", fake)
    return seen


def test_tasks_are_run_by_mlx_lm_on_the_models_folder(commands: list[list[str]], pair: Pair) -> None:
    result = run(str(pair.quantized), "--tasks", "arc_easy, winogrande", "--limit", "5", "--num-shots", "0", "--json")
    (command,) = commands
    assert command[1:5] == ["-P", "-m", "mlx_lm", "evaluate"]
    assert command[command.index("--model") + 1] == str(pair.quantized)
    assert command[command.index("--tasks") + 1 :] == ["arc_easy", "winogrande", "--num-shots", "0", "--limit", "5"]
    assert not Path(command[command.index("--output-dir") + 1]).exists()
    assert json.loads(result.stdout) == {"model": str(pair.quantized), "tasks": RESULTS}


@pytest.mark.usefixtures("commands")
def test_a_person_gets_a_line_for_each_measure_with_its_error() -> None:
    lines = run("demo", "--tasks", "arc_easy").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["arc_easy", "acc", "0.2500", "±", "0.1250"],
        ["arc_easy", "acc_norm", "0.5000"],
    ]


@pytest.mark.usefixtures("commands")
def test_a_failure_of_mlx_lm_is_one_line_more() -> None:
    result = run("demo", "--tasks", "broken")
    assert result.exit_code == 1
    assert result.stderr == "error: mlx_lm evaluate failed with status 1: what it said stands above\n"


def test_mlx_lm_has_the_options_that_are_passed_to_it() -> None:
    found = importlib.util.find_spec("mlx_lm")
    assert found is not None
    assert found.origin is not None
    source = (Path(found.origin).parent / "evaluate.py").read_text(encoding="utf-8")
    for option in ("--model", "--tasks", "--output-dir", "--num-shots", "--limit"):
        assert f'"{option}"' in source
