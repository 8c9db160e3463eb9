"""`afmoe-mlx models`: the short names and the local cache, listed; models removed from it."""

import json
from typing import Any

from ..checkpoint.hub_cache import cached_models, remove_cached
from ..checkpoint.names import MODEL_NAMES
from ..terminal import note, printable, size, write


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
        write(json.dumps({"models": rows, "other_cached": others}, indent=2) + "\n")
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


def remove(name: str) -> None:
    """Delete a model from the local Hub cache."""
    note(f"Removed {name}: {size(remove_cached(name))} freed")
