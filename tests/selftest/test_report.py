"""`afmoe-mlx doctor --self-test`: its table, its report, its exit status, and what is remembered of it."""

import getpass
import io
import json
import os
import platform
import sys
from pathlib import Path

import pytest

from afmoe_mlx import device
from afmoe_mlx.chat.conversation import engine
from afmoe_mlx.command_line.self_test import suggest_self_test
from afmoe_mlx.commands import generate
from afmoe_mlx.errors import SelfTestError
from afmoe_mlx.selftest import passed, report
from afmoe_mlx.selftest.check import Check
from afmoe_mlx.selftest.twin import Twin
from helpers.command_line import Result, run


def failing(twin: Twin) -> float:
    raise RuntimeError(f"[metal] no such kernel in {Path.home()}/venv/mlx.metallib")


def absent(twin: Twin) -> float:
    raise ValueError("[quantize] nvfp4 is not supported")


GOOD = [
    Check("mx.matmul", "float32", 1e-4, lambda twin: 1e-6),
    Check("mx.gather_mm", "float16", 1e-2, absent, is_optional=True),
]
BAD = [Check("mx.fast.rope", "bfloat16", 0.06, lambda twin: 0.5), Check("mx.conv1d", "float16", 0.06, failing)]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where it is remembered."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(report, "from_child", dict)
    return tmp_path / "state"


def doctor(monkeypatch: pytest.MonkeyPatch, checks: list[Check], *arguments: str) -> Result:
    monkeypatch.setattr(report, "checks", lambda is_tf32: iter(checks))
    return run("doctor", "--self-test", *arguments)


def test_the_table_has_a_line_a_check_and_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    result = doctor(monkeypatch, GOOD)
    heading, row, skipped = [line for line in result.out.splitlines() if line.startswith(("check", "mx."))]
    assert (result.code, result.err) == (0, "")
    assert heading.split() == ["check", "dtype", "difference", "limit", "seconds"]
    assert row.split()[:4] == ["mx.matmul", "float32", "1.0e-06", "1.0e-04"]
    assert skipped.split(maxsplit=2)[2] == "skipped: [quantize] nvfp4 is not supported"
    assert "All passed: 1 checks" in result.out


def test_what_is_wrong_is_named_and_the_exit_status_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    result = doctor(monkeypatch, GOOD + BAD)
    assert result.code == 1
    assert "- mx.fast.rope, bfloat16: off by 0.5, expected 0.06 at most\n" in result.out
    assert "- mx.conv1d, float16: [metal] no such kernel in mlx.metallib\n" in result.out
    assert [line.split()[0] for line in result.out.splitlines() if line.endswith("FAILED")] == [
        "mx.fast.rope",
        "mx.conv1d",
    ]
    assert "2 failed of 3 checks" in result.out
    assert passed.status() is None


def test_json_holds_all_of_it_and_nothing_else_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    result = doctor(monkeypatch, GOOD + BAD, "--json")
    value = json.loads(result.out)
    assert (result.code, value["passed"], len(value["problems"])) == (1, False, 2)
    assert value["device"] == {"name": device.device_name(), "backend": device.backend()}
    assert value["versions"].keys() >= {"afmoe-mlx", "mlx"}
    assert [(row["name"], row["is_failed"]) for row in value["checks"]] == [
        ("mx.matmul", False),
        ("mx.gather_mm", False),
        ("mx.fast.rope", True),
        ("mx.conv1d", True),
    ]


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["table", "json"])
def test_nothing_personal_is_in_the_report(monkeypatch: pytest.MonkeyPatch, state: Path, arguments: list[str]) -> None:
    out = doctor(monkeypatch, GOOD + BAD, *arguments).out
    for secret in (str(Path.home()), str(state), os.getcwd(), platform.node(), f" {getpass.getuser()} "):
        assert secret not in out
    assert "/" not in out


def test_a_twin_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Twin:
        raise SelfTestError("the CPU's part of the self-test was ended by SIGSEGV")

    monkeypatch.setattr(report, "from_child", fail)
    result = doctor(monkeypatch, GOOD)
    assert result.code == 1
    assert "- the CPU's part of the self-test was ended by SIGSEGV\n" in result.out
    assert passed.status() is None


def test_an_mlx_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("libmlx.so: cannot open shared object file")

    monkeypatch.setattr(device, "memory", fail)
    result = doctor(monkeypatch, GOOD)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: MLX cannot be used (ImportError: libmlx.so")
    assert result.err.count("\n") == 1


def test_that_it_passed_is_remembered_for_this_machine_and_these_versions(
    monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run("doctor", "--json").out.count('"self_test": false') == 1
    doctor(monkeypatch, GOOD)
    assert run("doctor", "--json").out.count('"self_test": true') == 1
    assert [path.name for path in (state / "afmoe-mlx").iterdir()] == ["self-test.json"]
    monkeypatch.setattr(device, "device_name", lambda: "Apple M9")
    assert passed.status() is None
    passed.remember("suggested")
    assert passed.status() == "suggested"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    assert passed.status() == "passed"


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": 1}', "\xff"])
def test_a_damaged_memory_is_an_empty_one(state: Path, content: str) -> None:
    path = state / "afmoe-mlx" / "self-test.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    assert passed.status() is None
    passed.remember("passed")
    assert passed.status() == "passed"


def test_a_home_that_cannot_be_written_to_does_no_harm(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    state.write_text("a file")
    assert doctor(monkeypatch, GOOD).code == 0


class Stream(io.StringIO):
    """A stderr that somebody looks on, or nobody."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal  # type: ignore[method-assign]


def suggested(name: str, monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool = True) -> str:
    """What is said once a model of that name is loaded."""
    with monkeypatch.context() as patched:
        stream = Stream(is_terminal=is_terminal)
        patched.setattr(sys, "stderr", stream)
        suggest_self_test(name)
    return stream.getvalue()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    monkeypatch.setattr(device, "backend", lambda: "Metal")


@pytest.mark.usefixtures("gpu")
def test_the_first_run_of_a_model_suggests_it_in_one_line_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suggested("demo", monkeypatch) == ""
    line = suggested("trinity-nano", monkeypatch)
    assert "doctor --self-test" in line
    assert line.count("\n") == 1
    assert suggested("lfm2-8b-a1b", monkeypatch) == ""


@pytest.mark.usefixtures("gpu")
def test_where_it_passed_nothing_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    passed.remember("passed")
    assert suggested("trinity-nano", monkeypatch) == ""


@pytest.mark.usefixtures("gpu")
def test_a_script_is_told_nothing_and_the_next_person_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suggested("trinity-nano", monkeypatch, is_terminal=False) == ""
    assert suggested("trinity-nano", monkeypatch) != ""


def test_on_the_cpu_nothing_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_cpu", lambda: True)
    assert suggested("trinity-nano", monkeypatch) == ""


def test_generate_and_chat_suggest_it(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for module in (generate, engine):
        monkeypatch.setattr(module, "suggest_self_test", asked.append)
    assert run("generate", "--model", model, "-p", "hello", "-m", "1").code == 0
    assert run("chat", "hello", "--model", model, "-m", "1").code == 0
    assert asked == [model, model]
