"""`afmoe-mlx models`: the short names, and a word before a huge download."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afmoe_mlx.checkpoint import resolve
from afmoe_mlx.errors import HubError
from helpers.command_line import run
from helpers.hub_server import MODEL, REPO, FakeHub


def test_models_lists_the_short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "afmoe_mlx", "models"]
    text = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    for name in ("trinity-nano", "trinity-mini", "trinity-large", "lfm2-8b-a1b"):
        assert name in text
    value = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment).stdout)
    assert [row["cached_bytes"] for row in value["models"]] == [0] * 4


def test_a_huge_download_is_named_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.api.resolve", _refuse)
    result = run("generate", "--model", "trinity-large", "--prompt", "x")
    assert result.code == 1
    assert "797 GB" in result.err.splitlines()[0]


@pytest.mark.parametrize("trouble", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_cache_that_cannot_be_written_to_is_one_line(
    trouble: OSError, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(REPO, MODEL)
    resolve(REPO)

    def refuse(*_: object, **__: object) -> None:
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        patch.setattr("os.remove", refuse)
        result = run("models", "rm", REPO)
    assert result.code == 1
    assert result.err.startswith(f"error: {REPO!r} could not be removed from ")
    assert result.err.count("\n") == 1
    assert not caplog.records  # the library says nothing before
    assert run("models", "rm", REPO).code == 0


def _refuse(*_: object, **__: object) -> None:
    raise HubError("no network in tests")
