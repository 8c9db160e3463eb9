"""The program as a process: streams of every kind, `convert.py`, no slow imports, help at 80 columns."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from afmoe_mlx.cli import app
from afmoe_mlx.terminal import printable, write
from helpers import ROOT
from helpers.command_line import invoke


def test_convert_py_at_the_top_is_the_same_command(model: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "convert.py"), "--hf-path", model, "--mlx-path", str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


SLOW = ("mlx_lm", "transformers", "torch")


@pytest.mark.parametrize("command", ["convert", "models", "chat"])  # of others tests/test_startup.py knows more
def test_no_command_imports_a_slow_framework(command: str, model: str, tmp_path: Path) -> None:
    arguments = {
        "convert": ["convert", "--hf-path", model, "--mlx-path", str(tmp_path / "out"), "-q", "--q-group-size", "32"],
        "models": ["models"],
        "chat": ["chat", "--model", model, "-m", "4"],
    }[command]
    code = (
        "import sys; from afmoe_mlx.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as e: code = e.code\n"
        f"print(code, [m for m in {SLOW!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, input="hello\n")
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr


def test_control_characters_are_shown_and_not_obeyed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "a\x1b]0;title\x07b\x9b2Jc\rd\u202ee\n\tf"
    assert printable(hostile) == "a\\x1b]0;title\\x07b\\x9b2Jc\\rd\\u202ee\n\tf"
    stream = io.StringIO()
    write(hostile, stream)
    assert stream.getvalue() == hostile
    monkeypatch.setattr(stream, "isatty", lambda: True)
    write(hostile, stream)
    assert stream.getvalue() == hostile + printable(hostile)


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")


@pytest.mark.parametrize(
    ("redirection", "words"),
    [
        ("< /dev/null", "empty"),
        ("<&-", "closed"),
        ("< {latin}", "UTF-8"),
        pytest.param("> /dev/full", "space", marks=FULL),
    ],
)
def test_unusable_streams_are_errors_of_one_line(redirection: str, words: str, model: str, tmp_path: Path) -> None:
    latin = tmp_path / "latin"
    latin.write_bytes(b"a\xffb")
    message = "" if "<" in redirection else "echo hello | "
    command = f"{message}{sys.executable} -m afmoe_mlx chat --model {model} -m 2 {redirection.format(latin=latin)}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_output_that_is_not_utf8_gets_escapes(model: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "afmoe_mlx", "generate", "--model", model, "-p", "x", "-m", "40", "--temp", "9"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def _commands(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = getattr(command, "commands", {})
    return [path, *(found for name in below for found in _commands(below[name], (*path, name)))]


@pytest.mark.parametrize("path", _commands(typer.main.get_command(app)), ids=" ".join)
def test_help_names_every_option_whole_at_80_columns(path: tuple[str, ...]) -> None:
    result = invoke([*path, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert "--help" in result.output
    assert re.findall(r"--[\w,-]*…", result.output) == []


@pytest.mark.parametrize(("closed", "code"), [(">&-", 1), ("2>&-", 0)])
def test_a_closed_stream_is_no_traceback(model: str, closed: str, code: int) -> None:
    command = f"{sys.executable} -m afmoe_mlx generate --model {model} -p hello -m 2 {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (code, 0)
    assert done.stdout or "stdout is closed" in done.stderr


def test_every_file_of_the_commands_is_a_command() -> None:
    files = {path.stem for path in (ROOT / "afmoe_mlx" / "commands").glob("*.py")} - {"__init__"}
    assert files == {path[0] for path in _commands(typer.main.get_command(app)) if len(path) == 1}
