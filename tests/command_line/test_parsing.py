"""How the command line is read: wrong usage is 2, mlx-lm's other options are refused by name."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import typer
from typer.main import get_command

from afmoe_mlx.cli import app
from afmoe_mlx.command_line.parsing import NOT_HERE, repeated
from helpers.command_line import run


@pytest.mark.parametrize("option", sorted(NOT_HERE.keys() - {"--adapter-path"}))  # some commands have that
def test_options_of_mlx_lm_that_are_not_here_are_refused_by_name(option: str, model: str) -> None:
    result = run("generate", "--model", model, "-p", "x", option, "4")
    assert result.code == 2
    assert option in result.err
    assert "No such option" not in result.err


@pytest.mark.parametrize(("command", "parser"), [("generate", "setup_arg_parser"), ("convert", "configure_parser")])
def test_every_option_of_mlx_lm_is_taken_or_refused_by_name(command: str, parser: str) -> None:
    pytest.importorskip("mlx_lm")
    actions = getattr(import_module(f"mlx_lm.{command}"), parser)()._actions
    theirs = {option for action in actions for option in action.option_strings} - {"-h", "--help"}
    ours = {option for param in get_command(app).commands[command].params for option in param.opts}  # type: ignore[attr-defined]
    assert not theirs - ours - NOT_HERE.keys()


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


def test_several_extra_eos_tokens_may_follow_one_flag() -> None:
    args = ["--extra-eos-token", "a", "b", "c", "--stop", "x", "-m", "3"]
    expected = ["--extra-eos-token", "a", "--extra-eos-token", "b", "--extra-eos-token", "c", *args[4:]]
    assert repeated(args, "--extra-eos-token") == expected


@pytest.mark.parametrize("command", ["info", "eval"])
@pytest.mark.parametrize("spelling", [["nowhere/at/all"], ["--model", "nowhere/at/all"], ["--model=nowhere/at/all"]])
def test_a_model_that_is_an_argument_may_be_given_as_the_option_it_is_elsewhere(
    command: str, spelling: list[str]
) -> None:
    result = run(command, "--revision", "x", *spelling)
    assert (result.code, result.err.splitlines()[-1][:31]) == (1, "error: no such folder: 'nowhere")
    assert run(command, *spelling, "other").code == 2
    assert run(command, "--model").code == 2


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


def _parsers(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Every command and group, with its options."""
    yield path, [param.opts[-1] for param in command.params if param.opts[-1].startswith("--")]
    for name, below in getattr(command, "commands", {}).items():
        yield from _parsers(below, (*path, name))


PARSERS = dict(_parsers(typer.main.get_command(app)))


@pytest.mark.parametrize("path", PARSERS, ids=" ".join)
def test_an_option_there_is_not_is_answered_with_the_nearest_in_one_line(path: tuple[str, ...]) -> None:
    for option in PARSERS[path]:
        typed = option + "q"
        result = run(*path, typed)
        assert (result.code, result.out) == (2, "")
        assert result.err == f"error: no option {typed}; did you mean {option}?\n"
    assert run(*path, "--zzqqww").err.startswith("error: no option --zzqqww; see ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["generate", "--temperature", "1"], "no option --temperature; did you mean --temp?"),
        (["generat"], "no such command 'generat'; did you mean 'generate'?"),
        (["models", "r", "x"], "no such command 'r'; did you mean 'rm'?"),
        (["nothing"], "no such command 'nothing'; see root --help"),
        (["generate"], "give a message by --prompt, or a file of several by --prompts; see root generate --help"),
        (["info"], "missing argument 'model'; see root info --help"),
        (["generate", "-p"], "option '-p' requires an argument"),
        (["doctor", "x"], "got unexpected extra argument(s) (x); see root doctor --help"),
        (["info", "x", "--context", "0"], "invalid value for '--context': 0 is not in the range x>=1;"),
        (["convert", "--hf-path", "x", "-q", "-d"], "choose --quantize, --recipe or --dequantize, one of them;"),
        (["cache", "trim", "--max-bytes", "-1"], "--max-bytes is -1: expected 0 or more;"),
        (
            ["doctor", "--adapter-path", "y"],
            "--adapter-path: adapters are for generate, chat, serve, bench, eval, info, convert and fuse",
        ),
        (["generate", "-p", "x", "--pipeline"], "--pipeline: one model on several machines is --hosts FILE"),
        (["chat", "--no\nsuch"], "no option --no such;"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], line: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.err.startswith(f"error: {line}")
    assert result.err.count("\n") == 1


def test_nothing_typed_shows_what_there_is() -> None:
    result = run()
    assert result.code == 2
    assert "generate" in result.out + result.err
