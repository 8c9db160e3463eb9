"""The command line: answers on stdout, everything else on stderr, one line an error, no slow imports."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from tiny import tiny_folder
from typer.testing import CliRunner

from afmoe_mlx import generate, load, stream_generate
from afmoe_mlx.cli import app
from afmoe_mlx.command_line.parsing import NOT_HERE, repeated
from afmoe_mlx.errors import HubError
from afmoe_mlx.terminal import printable, write

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


def run(*arguments: str, stdin: str | None = None) -> "Result":
    return Result(CliRunner().invoke(app, list(arguments), input=stdin))


class Result:
    def __init__(self, result: object) -> None:
        self.code: int = result.exit_code  # type: ignore[attr-defined]
        self.out: str = result.stdout  # type: ignore[attr-defined]
        self.err: str = result.stderr  # type: ignore[attr-defined]


def test_the_answer_alone_is_on_stdout(model: str) -> None:
    result = run("generate", "--model", model, "--prompt", "hello", "-m", "12")
    loaded = load(model)
    ids = loaded[1].apply_chat_template([{"role": "user", "content": "hello"}])
    assert result.code == 0
    assert result.out == generate(*loaded, ids, max_tokens=12) + "\n"
    assert "tokens/s" in result.err


def test_verbose_false_prints_the_answer_alone(model: str) -> None:
    assert run("generate", "--model", model, "--prompt", "hello", "-m", "3", "--verbose", "False").err == ""


def test_json_holds_text_and_statistics(model: str) -> None:
    result = run("generate", "--model", model, "-p", "hello", "-m", "5", "--json")
    value = json.loads(result.out)
    assert (value["finish_reason"], value["generation_tokens"]) == ("length", 5)
    assert value.keys() == {
        "text",
        "finish_reason",
        "prompt_tokens",
        "generation_tokens",
        "prompt_tps",
        "generation_tps",
        "peak_memory_gb",
    }


def test_a_dash_reads_the_prompt_from_stdin(model: str) -> None:
    options = ("generate", "--model", model, "-m", "6", "--prompt")
    assert run(*options, "-", stdin="hello").out == run(*options, "hello").out


def test_system_prompt_prefill_and_raw_prompts_reach_the_template(model: str) -> None:
    def prompt_tokens(*more: str) -> int:
        return json.loads(run("generate", "--model", model, "-p", "hello", "-m", "1", "--json", *more).out)[
            "prompt_tokens"
        ]

    plain = prompt_tokens()
    assert prompt_tokens("--ignore-chat-template") < plain
    assert prompt_tokens("--system-prompt", "the world") > plain
    assert prompt_tokens("--prefill-response", "hello, hello") > plain


def test_stop_seed_and_extra_eos_are_honoured(model: str) -> None:
    options = ("generate", "--model", model, "-p", "hello", "-m", "30", "--temp", "2", "--seed", "3")
    text = run(*options).out
    assert run(*options).out == text
    assert run(*options, "--stop", text[5:7]).out == text[: text.index(text[5:7])] + "\n"


@pytest.mark.parametrize("option", sorted(NOT_HERE))
def test_options_of_mlx_lm_that_are_not_here_are_refused_by_name(option: str, model: str) -> None:
    result = run("generate", "--model", model, "-p", "x", option, "4")
    assert result.code == 2
    assert option in result.err
    assert "No such option" not in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "--model", "x"],
        ["generate", "--model", "x", "--prompt", "y", "--max-tokens", "many"],
        ["generate", "--model", "x", "--prompt", "y", "--no-such-option"],
        ["nothing"],
        ["convert"],
        ["convert", "--hf-path", "x", "-q", "-d"],
        ["convert", "--hf-path", "x", "--q-bits", "4"],
        ["models", "rm"],
        ["cache", "trim", "--max-bytes", "-1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments).code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temp", "-1"], "temperature"),
        (["--top-p", "1.5"], "top_p"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--chat-template-config", "{"], "--chat-template-config"),
        (["--chat-template-config", "[1]"], "JSON object"),
        (["--chat-template-config", '{"messages": []}'], "messages"),
        (["--extra-eos-token", "no such token"], "no such token"),
        (["--ignore-chat-template", "--system-prompt", "x"], "--system-prompt"),
        (["--stop", ""], "stop"),
        (["--revision", "main"], "revision"),
    ],
)
def test_errors_are_one_line_and_exit_with_1(arguments: list[str], words: str, model: str) -> None:
    result = run("generate", "--model", model, "--prompt", "hello", *arguments)
    assert result.code == 1
    assert words in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_an_unknown_config_key_is_a_warning_of_one_line(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", some_new_key=3)
    result = run("generate", "--model", str(folder), "-p", "hello", "-m", "1", "--verbose", "F")
    assert result.code == 0
    assert result.err == "warning: config: unknown keys ignored: some_new_key\n"


def test_convert_writes_a_model_that_answers(model: str, tmp_path: Path) -> None:
    target = str(tmp_path / "converted")
    result = run("convert", "--hf-path", model, "--mlx-path", target, "-q", "--q-bits", "8", "--q-group-size", "32")
    assert result.code == 0
    assert result.out == ""
    assert target in result.err
    assert run("generate", "--model", target, "-p", "hello", "-m", "3").code == 0
    again = run("convert", "--hf-path", model, "--mlx-path", target, "-q")
    assert again.code == 1
    assert "exists" in again.err


def test_convert_py_at_the_top_is_the_same_command(model: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "convert.py"), "--hf-path", model, "--mlx-path", str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


SLOW = ("mlx_lm", "transformers", "torch")


@pytest.mark.parametrize("command", ["--help", "generate", "convert", "models", "chat"])
def test_no_command_imports_a_slow_framework(command: str, model: str, tmp_path: Path) -> None:
    arguments = {
        "--help": ["--help"],
        "generate": ["generate", "--model", model, "-p", "hello", "-m", "2"],
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


def test_interrupting_an_answer_prints_what_there_is_and_exits_with_130(model: str) -> None:
    command = [
        sys.executable,
        "-m",
        "afmoe_mlx",
        "generate",
        "--model",
        model,
        "-p",
        "hello",
        "-m",
        "480",
        "--temp",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.read(1)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in errors


def test_a_reader_that_leaves_is_no_traceback(model: str) -> None:
    command = f"{sys.executable} -m afmoe_mlx generate --model {model} -p hello -m 200 | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_control_characters_are_shown_and_not_obeyed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "a\x1b]0;title\x07b\x9b2Jc\rd\u202ee\n\tf"
    assert printable(hostile) == "a\\x1b]0;title\\x07b\\x9b2Jc\\rd\\u202ee\n\tf"
    stream = io.StringIO()
    write(hostile, stream)
    assert stream.getvalue() == hostile
    monkeypatch.setattr(stream, "isatty", lambda: True)
    write(hostile, stream)
    assert stream.getvalue() == hostile + printable(hostile)


def test_several_extra_eos_tokens_may_follow_one_flag() -> None:
    args = ["--extra-eos-token", "a", "b", "c", "--stop", "x", "-m", "3"]
    expected = ["--extra-eos-token", "a", "--extra-eos-token", "b", "--extra-eos-token", "c", *args[4:]]
    assert repeated(args, "--extra-eos-token") == expected


@pytest.mark.parametrize(
    ("redirection", "words"),
    [("< /dev/null", "empty"), ("<&-", "closed"), ("< {latin}", "UTF-8"), ("> /dev/full", "space")],
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


def test_models_lists_the_short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "afmoe_mlx", "models"]
    text = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    for name in ("trinity-nano", "trinity-mini", "trinity-large", "lfm2-8b-a1b"):
        assert name in text
    value = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment).stdout)
    assert [row["cached_bytes"] for row in value["models"]] == [0] * 4


def test_a_huge_download_is_named_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.api.resolve", _refuse)
    result = run("generate", "--model", "trinity-large", "--prompt", "x")
    assert result.code == 1
    assert "797 GB" in result.err.splitlines()[0]


def _refuse(*_: object, **__: object) -> None:
    raise HubError("no network in tests")


def test_quantized_keys_are_said_and_used(model: str) -> None:
    options = ("--model", model, "-p", "hello", "-m", "4", "--kv-group-size", "32")
    result = run("generate", *options, "--kv-bits", "8")
    assert result.code == 1  # the tiny model's heads are narrower than any group
    assert "heads have 8 dimensions" in result.err
    result = run("generate", "-p", "hello", "-m", "4", "--kv-bits", "8", "--kv-group-size", "32")
    assert result.code == 0
    assert "2 full-attention layers in 8 bits; the 6 others are bounded" in result.err


def test_bits_that_keys_cannot_have_are_refused() -> None:
    result = run("generate", "-p", "hello", "--kv-bits", "5")
    assert (result.code, result.err.splitlines()[-1]) == (1, "error: kv_bits is 5: expected one of 4, 8")


def _commands(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = getattr(command, "commands", {})
    return [path, *(found for name in below for found in _commands(below[name], (*path, name)))]


@pytest.mark.parametrize("path", _commands(typer.main.get_command(app)), ids=" ".join)
def test_help_names_every_option_whole_at_80_columns(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert "--help" in result.output
    assert re.findall(r"--[\w,-]*…", result.output) == []


@pytest.mark.parametrize(
    ("option", "needed"),
    [
        ("--num-draft-tokens", "--draft-model"),
        ("--kv-group-size", "--kv-bits"),
        ("--quantized-kv-start", "--kv-bits"),
    ],
)
@pytest.mark.parametrize("command", [["generate", "--prompt"], ["chat"]])
def test_an_option_that_does_nothing_without_another_is_refused(command: list[str], option: str, needed: str) -> None:
    result = run(*command, "hello", option, "32")
    assert result.code == 2
    assert option in result.err
    assert needed in result.err


def test_statistics_say_that_an_answer_was_interrupted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from afmoe_mlx.commands import generate as command

    def interrupted(*arguments: object, **options: object) -> Iterator[object]:
        yield next(stream_generate(*arguments, **options))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "stream_generate", interrupted)
    result = run("generate", "--model", model, "-p", "hello", "-m", "9")
    assert result.code == 130
    assert "(interrupted)" in result.err


@pytest.mark.parametrize(("closed", "code"), [(">&-", 1), ("2>&-", 0)])
def test_a_closed_stream_is_no_traceback(model: str, closed: str, code: int) -> None:
    command = f"{sys.executable} -m afmoe_mlx generate --model {model} -p hello -m 2 {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (code, 0)
    assert done.stdout or "stdout is closed" in done.stderr


def test_groups_of_keys_are_as_large_as_fits() -> None:
    assert run("generate", "-p", "hello", "-m", "2", "--kv-bits", "8").code == 0
