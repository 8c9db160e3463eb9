"""What is remembered of the self-test: on which machines, with which versions, it has passed or been suggested."""

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from .. import device

Status = Literal["passed", "suggested"]


def status() -> Status | None:
    """What is remembered of this machine and these versions; None for nothing."""
    found = _read().get(_machine())
    return found if found in ("passed", "suggested") else None  # type: ignore[return-value]


def remember(found: Status) -> None:
    """Keep it for this machine and these versions; OSError if it cannot be written."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.urandom(8).hex()}.partial")
    try:
        partial.write_text(json.dumps(_read() | {_machine(): found}, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _machine() -> str:
    """What a result depends on: a home folder may be that of several machines, and outlives versions."""
    system = platform.mac_ver()[0] or platform.release()
    versions = ", ".join(f"{name} {_version(name)}" for name in ("mlx", "afmoe-mlx"))
    return f"{device.device_name()}, {device.backend()}, {sys.platform} {system}, {versions}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of no package"


def _read() -> dict[str, str]:
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path() -> Path:
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        base = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/state")
    return base / "afmoe-mlx" / "self-test.json"
