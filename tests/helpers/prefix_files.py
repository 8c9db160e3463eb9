"""The files of a prefix store."""

from pathlib import Path


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
