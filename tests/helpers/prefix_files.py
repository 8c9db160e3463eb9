"""Prefix stores with files, and what lies there."""

from pathlib import Path


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
