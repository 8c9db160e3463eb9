"""The command line run in this process."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from typer import testing

from afmoe_mlx.cli import app

# Putting the commands together takes longer than most runs of one: once is enough.
testing._get_command = cache(testing._get_command)  # type: ignore[attr-defined]


def invoke(arguments: Sequence[str], **options: Any) -> testing.Result:
    return testing.CliRunner().invoke(app, list(arguments), **options)


def run(*arguments: str, stdin: str | None = None) -> "Result":
    return Result(invoke(arguments, input=stdin))


class Result:
    def __init__(self, result: testing.Result) -> None:
        self.code = result.exit_code
        self.out = result.stdout
        self.err = result.stderr
