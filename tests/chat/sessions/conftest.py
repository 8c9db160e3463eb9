"""An empty folder of sessions."""

from pathlib import Path

import pytest

from afmoe_mlx.chat.sessions.folder import SessionFolder


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    return SessionFolder(tmp_path / "data" / "sessions")
