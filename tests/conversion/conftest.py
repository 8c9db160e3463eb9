"""The Hub with a model in four shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hub_server import REPO, FakeHub, use_hub
from helpers.shards import MODEL


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import close_session

    monkeypatch.setattr("afmoe_mlx.checkpoint.shards.PAUSES", (0.0, 0.0))
    with FakeHub(tmp_path / "served") as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        server.add(REPO, MODEL)
        yield server
        close_session()
