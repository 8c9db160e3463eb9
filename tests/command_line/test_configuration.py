"""`config.toml`: the user's model and presets are defaults that what is typed wins over; each mistake is one line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from afmoe_mlx.cli import app
from afmoe_mlx.command_line import configuration
from afmoe_mlx.command_line.configuration import KINDS, configuration_file, default_model
from afmoe_mlx.command_line.requests.answering import ChatRequest, GenerateRequest, or_demo
from helpers.command_line import Result, run

COMMANDS = ("generate", "chat")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file is read, in a folder that is there."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    configuration_file().parent.mkdir()
    return configuration_file()


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What a command would be asked."""
    seen: list[GenerateRequest | ChatRequest] = []
    module = "afmoe_mlx.commands.generate" if arguments[0] == "generate" else "afmoe_mlx.commands.chat"
    monkeypatch.setattr(f"{module}.run", seen.append)
    result = run(*arguments)
    assert result.code == 0, result.err
    return seen[0]


def refusal(result: Result, file: Path) -> str:
    """The one line that names the file."""
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert str(file) in result.err
    return result.err


def test_a_presets_options_are_those_asked_for_and_what_is_typed_wins(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('[presets.wild]\ntemp = 2\n"top-p" = 0.5\nmax_tokens = 7\nstop = ["a", "b"]\ndisk-cache = true\n')
    request = asked(monkeypatch, "generate", "-p", "x", "--top-p", "0.9", "--preset", "wild", "--temp", "0")
    assert (request.temp, request.top_p, request.max_tokens) == (0, 0.9, 7)
    assert list(request.stop) == ["a", "b"]
    assert request.disk_cache is True
    assert (request.preset, request.top_k) == ("wild", None)
    assert asked(monkeypatch, "generate", "-p", "x").temp is None


def test_the_model_of_the_file_answers_where_none_is_named(file: Path, model: str, capfd: Any) -> None:
    assert or_demo(None) == "demo"
    assert "built-in demo" in capfd.readouterr().err
    file.write_text(f"model = {model!r}")
    assert or_demo(None) == default_model() == model
    assert or_demo("demo") == "demo"
    assert capfd.readouterr().err == ""


def test_a_preset_may_have_options_that_are_no_plain_values(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[presets.a]\nlogit-bias = ['4=-5']\nprompt-lookup = true\n[presets.b]\nprompt_lookup = 3")
    first, second = (asked(monkeypatch, "generate", "-p", "x", "--preset", name) for name in "ab")
    assert first.stream_options["logit_bias"] == {4: -5.0}
    assert (first.prompt_lookup, second.prompt_lookup) == (True, 3)


def test_a_byte_order_mark_is_no_part_of_the_file(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfmodel = 'a/b'")
    assert default_model() == "a/b"


def test_a_preset_may_name_a_model(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('model = "a/b"\n[presets.other]\nmodel = "c/d"')
    for command in (("generate", "-p", "x"), ("chat", "x")):
        assert asked(monkeypatch, *command, "--preset", "other").model == "c/d"
        assert asked(monkeypatch, *command, "--preset", "other", "--model", "e/f").model == "e/f"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no table [presets.mine], it has none"),
        ("[presets.yours]", "no table [presets.mine], those there are: yours"),
        ("presets = 3", "no table [presets.mine], it has none"),
        ("presets.mine = 3", "no table [presets.mine]"),
        ("[presets.mine]\nmodle = 'x'", "presets.mine.modle: generate has no option of this name"),
        ("[presets.mine]\npreset = 'x'", "presets.mine.preset"),
        ('[presets.mine]\n"a\\nb" = 1', r"presets.mine.'a\nb'"),
        ("[presets.mine]\ntemp = 'hot'", "presets.mine.temp is 'hot': expected a number"),
        ("[presets.mine]\ntemp = true", "presets.mine.temp is True: expected a number"),
        ("[presets.mine]\ntemp = -1", "presets.mine.temp: temperature is -1"),
        ("[presets.mine]\nmax-tokens = 0", "presets.mine.max-tokens: max_tokens is 0"),
        ("[presets.mine]\nmax-tokens = 1.5", "presets.mine.max-tokens is 1.5: expected an integer"),
        ("[presets.mine]\ncontext = 0", "presets.mine.context: 0 is not in the range"),
        ("[presets.mine]\ndisk-cache = 1", "presets.mine.disk-cache is 1: expected true or false"),
        ("[presets.mine]\nstop = 'x'", "presets.mine.stop is 'x': expected a list"),
        ("[presets.mine]\nstop = ['x', 1]", "presets.mine.stop is 1: expected text"),
        ("[presets.mine]\nstop = ['']", "presets.mine.stop: a stop string is ''"),
        ("[presets.mine]\nlogit-bias = ['x']", "presets.mine.logit-bias: logit_bias is 'x'"),
        ("[presets.mine]\nprompt-lookup = 'x'", "presets.mine.prompt-lookup is 'x': expected a number of tokens"),
        ("modle = 'x'", "modle: expected model, and tables [presets.NAME]"),
        ("model = ", "cannot be read as TOML"),
    ],
)
def test_what_a_preset_cannot_mean_is_one_line_with_the_file_and_the_key(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    assert words in refusal(run("generate", "-p", "x", "--preset", "mine"), file)


@pytest.mark.parametrize("content", [b"model = 3", b"\xff\xfe", b"model", b"modl = 'x'"])
@pytest.mark.parametrize("command", [("generate", "-p", "x"), ("chat", "x")])
def test_a_damaged_file_is_one_line(file: Path, content: bytes, command: tuple[str, ...]) -> None:
    file.write_bytes(content)
    refusal(run(*command), file)
    assert run("models", "rm").code == 2  # what does not read it does not mind


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_kind_that_a_preset_can_give(name: str) -> None:
    params = get_command(app).commands[name].params  # type: ignore[attr-defined]
    assert {param.type.name for param in params} <= KINDS.keys()


@pytest.mark.parametrize(
    ("platform", "home", "expected"),
    [
        ("linux", None, ".config/afmoe-mlx/config.toml"),
        ("darwin", None, "Library/Application Support/afmoe-mlx/config.toml"),
        ("darwin", "elsewhere", "elsewhere/afmoe-mlx/config.toml"),
    ],
)
def test_the_file_is_where_the_system_keeps_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, home: str | None, expected: str
) -> None:
    monkeypatch.setattr(configuration.sys, "platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / home) if home else "relative")
    assert configuration_file() == tmp_path / expected


def test_without_the_file_nothing_is_imported_to_read_it() -> None:
    code = (
        "import sys; from afmoe_mlx.command_line.configuration import default_model\n"
        "print(default_model(), 'tomllib' in sys.modules, 'mlx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["None", "False", "False"], done.stderr
