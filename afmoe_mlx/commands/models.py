"""`afmoe-mlx models`: the short names and the local cache, listed; models fetched into it and removed from it."""

from typing import Any

from ..checkpoint.hub import resolve
from ..checkpoint.hub_cache import cached_models, remove_cached
from ..checkpoint.names import MODEL_NAMES, caution
from ..checkpoint.verify import Check, Headers
from ..errors import FitError
from ..models import ModelConfig
from ..terminal import note, printable, size, write, write_json


def list_models(*, as_json: bool) -> None:
    """Print the models known by a short name and those in the local Hub cache."""
    cached = {model.repo: model for model in cached_models()}
    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "repo": row.repo,
            "description": row.description,
            "download_bytes": row.download_bytes,
            "cached_bytes": cached[row.repo].bytes if row.repo in cached else 0,
            "note": row.note,
        }
        for row in MODEL_NAMES
    ]
    named = {row.repo for row in MODEL_NAMES}
    others = [
        {"repo": m.repo, "model_type": m.model_type, "cached_bytes": m.bytes}
        for m in cached.values()
        if m.repo not in named
    ]
    if as_json:
        write_json({"models": rows, "other_cached": others}, indent=2)
        return
    _print_table(rows, others)


def _print_table(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        held = f"cached ({size(row['cached_bytes'])})" if row["cached_bytes"] else "not downloaded"
        download = size(row["download_bytes"]) if row["download_bytes"] else "?"
        write(f"{row['name']:{width}}  {download:>8}  {row['description']:18}  {held:20}  {row['repo']}\n")
        if row["note"]:
            write(f"{'':{width}}  {row['note']}\n")
    if others:
        write("\nAlso in the local cache:\n")
        for row in others:
            write(f"  {printable(row['repo'])}  {size(row['cached_bytes'])}\n")


def pull(name: str, *, revision: str | None) -> None:
    """Fetch a model, as far as it is not here, and print its folder."""
    from ..api import DEMO

    if words := caution(name):
        note(words, dim=True)
    try:
        folder = DEMO if name == "demo" else resolve(name, revision=revision, check=_warns(name))
    except KeyboardInterrupt:
        note("Interrupted. Files that are whole are kept: run the same command again to continue.")
        raise
    write(f"{folder}\n")


def _warns(name: str) -> Check:
    """A check that says what does not fit this machine, and lets it be fetched: it may be for another."""
    from ..footprint import fit_check

    refuses = fit_check(name, advice="fetched all the same")

    def check(config: ModelConfig, headers: Headers) -> None:
        try:
            refuses(config, headers)
        except FitError as error:
            note(f"warning: {error}")

    return check


def remove(name: str) -> None:
    """Delete a model from the local Hub cache."""
    note(f"Removed {name}: {size(remove_cached(name))} freed")
