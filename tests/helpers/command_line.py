"""The command line run in this process."""

from typer.testing import CliRunner

from afmoe_mlx.cli import app


def run(*arguments: str, stdin: str | None = None) -> "Result":
    return Result(CliRunner().invoke(app, list(arguments), input=stdin))


class Result:
    def __init__(self, result: object) -> None:
        self.code: int = result.exit_code  # type: ignore[attr-defined]
        self.out: str = result.stdout  # type: ignore[attr-defined]
        self.err: str = result.stderr  # type: ignore[attr-defined]
