"""How the command line is read: wrong usage is 2, mlx-lm's other options are refused by name."""

from importlib import import_module

import pytest
from typer.main import get_command

from afmoe_mlx.cli import app
from afmoe_mlx.command_line.parsing import NOT_HERE, repeated
from helpers.command_line import run


@pytest.mark.parametrize("option", sorted(NOT_HERE))
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
