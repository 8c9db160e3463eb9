"""`afmoe-mlx cache`: the prefix cache on disk: shown, trimmed, cleared."""

from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from ..cache import default_directory
from ..cache.disk import StoredFile, stored_files, trim
from ..errors import CacheError
from ..terminal import note, printable, size, write, write_json


def show(directory: str | None, *, as_json: bool) -> None:
    """Print the files and bytes of each model's prefixes."""
    folder, files = _files(directory)
    models = [_row(model, list(group)) for model, group in groupby(sorted(files, key=_model), key=_model)]
    total = sum(file.nbytes for file in files)
    if as_json:
        told = {"directory": str(folder), "files": len(files), "bytes": total, "models": models}
        write_json(told, indent=2)
        return
    write(f"{printable(str(folder))}: {_count(len(files))}, {size(total)}\n")
    for row in models:
        write(f"  model {row['model'][:12]}  {_count(row['files']):>12}  {size(row['bytes']):>9}  used {row['used']}\n")


def shrink(directory: str | None, max_bytes: int) -> None:
    """Delete the least recently used files until `max_bytes` are left."""
    folder, _ = _files(directory)
    deleted = trim(folder, max_bytes) if folder.is_dir() else []
    note(f"Removed {_count(len(deleted))} of {folder}: {size(sum(file.nbytes for file in deleted))} freed")


def _files(directory: str | None) -> tuple[Path, list[StoredFile]]:
    folder = default_directory() if directory is None else Path(directory).expanduser()
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder} is not a folder: expected one that --prompt-cache-dir has filled")
    return folder, stored_files(folder)


def _model(file: StoredFile) -> str:
    return file.path.parent.name


def _row(model: str, files: list[StoredFile]) -> dict[str, Any]:
    used = datetime.fromtimestamp(max(file.used for file in files) / 1e9)
    return {
        "model": model,
        "files": len(files),
        "bytes": sum(file.nbytes for file in files),
        "used": used.isoformat(" ", "minutes"),
    }


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"
