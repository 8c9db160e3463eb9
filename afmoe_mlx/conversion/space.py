"""Checking that the disk has room for what a conversion fetches and writes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConversionError
from ..terminal import size


def check_space(needs: Sequence[tuple[Path, int, str]], advice: str = "free space") -> None:
    """ConversionError, in one line, if a disk has less room than is needed on it.

    needs: folders that may not exist yet, the bytes that will be put there, and what these are, as in "the download".
    """
    disks: dict[int, list[tuple[Path, int, str]]] = {}
    for path, count, what in needs:
        place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        disks.setdefault(place.stat().st_dev, []).append((place, count, what))
    for parts in disks.values():
        free = shutil.disk_usage(parts[0][0]).free
        needed = sum(count for _, count, _ in parts)
        if needed > free:
            listed = " and ".join(f"{size(count)} for {what}" for _, count, what in parts if count)
            raise ConversionError(f"{parts[0][0]}: {size(free)} are free, expected {listed}: {advice}")
