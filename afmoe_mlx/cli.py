"""The Typer app behind the console script: all commands, in the order of `--help`."""

import io
import os
import sys
from typing import Annotated

import typer

from .commands.arguments import answer, conversion, machine, storage
from .commands.parsing import Command, Group

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True)
app.add_typer(storage.models_app, name="models", invoke_without_command=True)
app.add_typer(storage.cache_app, name="cache", invoke_without_command=True)


def _version(value: bool) -> None:
    if value:
        from . import __version__

        typer.echo(f"afmoe-mlx {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Run Arcee's Trinity (AFMoE) and Liquid's LFM2-MoE models on this machine."""


app.command(cls=Command)(answer.generate)
app.command(cls=Command)(answer.chat)
app.command(cls=Command)(conversion.convert)
app.command(cls=Command)(machine.info)
app.command(cls=Command)(machine.bench)
app.command("eval", cls=Command)(conversion.evaluate)
app.command(cls=Command)(machine.doctor)


def main() -> None:
    """Run the app on streams that can be written to."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: MLX takes a file of number 0 for one that cannot be opened
    os.close(file)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 still gets its text
    app()
