"""The Typer app behind the console script: all commands, in the order of `--help`."""

import io
import os
import sys
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer

from .command_line.options import MODEL_HELP, AsJson, CacheDirectory, Revision
from .command_line.parsing import Command, Group
from .command_line.request import command_of
from .command_line.requests.answering import ChatRequest, GenerateRequest
from .command_line.requests.conversion import ConvertRequest, EvalRequest, FuseRequest
from .command_line.requests.machine import BenchRequest, DoctorRequest, InfoRequest
from .command_line.requests.serving import ServeRequest
from .command_line.requests.tuning import LoraRequest

# What each command takes. What it does is `run` of the module in `commands` that has its name.
REQUESTS = {
    "generate": GenerateRequest,
    "chat": ChatRequest,
    "serve": ServeRequest,
    "convert": ConvertRequest,
    "fuse": FuseRequest,
    "info": InfoRequest,
    "bench": BenchRequest,
    "eval": EvalRequest,
    "lora": LoraRequest,
    "doctor": DoctorRequest,
}

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True)
models_app = typer.Typer(help="List the models with a short name and those in the local cache, pull and remove them.")
cache_app = typer.Typer(help="Show what is kept of prompts on disk, and trim or clear it.")
app.add_typer(models_app, name="models", invoke_without_command=True)
app.add_typer(cache_app, name="cache", invoke_without_command=True)


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


def _run(name: str, request: Any) -> None:
    """Run a command, whose module is imported only now."""
    raise typer.Exit(import_module(f".commands.{name}", __package__).run(request) or 0)


for _name, _request in REQUESTS.items():
    app.command(_name, cls=Command)(command_of(_request, partial(_run, _name)))


@app.command("follow", hidden=True)
def follow(silence: Annotated[float, typer.Option(min=1.0)] = 60.0) -> None:
    """Hold a part of a model for another machine, which starts this and writes to it."""
    from .commands import follow as command

    command.run(silence)


@models_app.callback()
def models(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the models with a short name and those in the local cache."""
    if ctx.invoked_subcommand is None:
        from .commands import models as command

        command.list_models(as_json=as_json)


@models_app.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help=MODEL_HELP)], revision: Revision = None) -> None:
    """Download a model ahead of its use and print its folder; files that are whole are kept when it is broken off."""
    from .commands import models as command

    command.pull(name, revision=revision)


@models_app.command("rm")
def remove_model(name: Annotated[str, typer.Argument(help="A short name or owner/name.")]) -> None:
    """Delete a model from the local cache."""
    from .commands import models as command

    command.remove(name)


@cache_app.callback()
def cache(ctx: typer.Context, directory: CacheDirectory = None, as_json: AsJson = False) -> None:
    """Show what is kept of prompts on disk, and trim or clear it."""
    ctx.obj = directory
    if ctx.invoked_subcommand is None:
        from .commands import cache as command

        command.show(directory, as_json=as_json)


@cache_app.command("trim")
def trim_cache(
    ctx: typer.Context,
    max_bytes: Annotated[int, typer.Option(metavar="N", help="Bytes that may stay.")],
    directory: CacheDirectory = None,
) -> None:
    """Delete what has not been used for longest."""
    if max_bytes < 0:
        raise typer.BadParameter(f"--max-bytes is {max_bytes}: expected 0 or more")
    from .commands import cache as command

    command.shrink(directory or ctx.obj, max_bytes)


@cache_app.command("clear")
def clear_cache(ctx: typer.Context, directory: CacheDirectory = None) -> None:
    """Delete all that is kept of prompts on disk."""
    from .commands import cache as command

    command.shrink(directory or ctx.obj, 0)


def main() -> None:
    """Run the app on streams that can be written to."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: MLX takes a file of number 0 for one that cannot be opened
    os.close(file)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 still gets its text
    app()
