"""The arguments of the commands that show and remove what is kept on disk: models, and what is computed of prompts."""

from typing import Annotated

import typer

from ..options import CacheDirectory

models_app = typer.Typer(help="List the models with a short name and those in the local cache.")
cache_app = typer.Typer(help="Show what is kept of prompts on disk, and trim or clear it.")


@cache_app.callback()
def cache(
    ctx: typer.Context,
    directory: CacheDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is kept of prompts on disk, and trim or clear it."""
    if ctx.invoked_subcommand is None:
        from .. import cache as command

        command.show(directory, as_json=as_json)
        return
    ctx.obj = directory


@cache_app.command("trim")
def trim_cache(
    ctx: typer.Context,
    max_bytes: Annotated[int, typer.Option(metavar="N", help="Bytes that may stay.")],
    directory: CacheDirectory = None,
) -> None:
    """Delete what has not been used for longest."""
    if max_bytes < 0:
        raise typer.BadParameter(f"--max-bytes is {max_bytes}: expected 0 or more")
    from .. import cache as command

    command.shrink(directory or ctx.obj, max_bytes)


@cache_app.command("clear")
def clear_cache(ctx: typer.Context, directory: CacheDirectory = None) -> None:
    """Delete all that is kept of prompts on disk."""
    from .. import cache as command

    command.shrink(directory or ctx.obj, 0)


@models_app.callback()
def models(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """List the models with a short name and those in the local cache."""
    if ctx.invoked_subcommand is None:
        from .. import models as command

        command.list_models(as_json=as_json)


@models_app.command("rm")
def remove_model(name: Annotated[str, typer.Argument(help="A short name or owner/name.")]) -> None:
    """Delete a model from the local cache."""
    from .. import models as command

    command.remove(name)
