"""`afmoe-mlx models`: the short names, and a word before a huge download."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afmoe_mlx.checkpoint.names import MODEL_NAMES
from afmoe_mlx.errors import HubError
from helpers.command_line import run


def test_models_lists_the_short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "afmoe_mlx", "models"]
    text = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    assert all(f"{row.name} " in text for row in MODEL_NAMES)
    assert "?" in next(line for line in text.splitlines() if line.startswith("lfm2.5-24b-a2b"))  # its size is not known
    value = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment).stdout)
    assert [row["cached_bytes"] for row in value["models"]] == [0] * len(MODEL_NAMES)


def test_a_huge_download_is_named_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afmoe_mlx.api.resolve", _refuse)
    result = run("generate", "--model", "trinity-large", "--prompt", "x")
    assert result.code == 1
    assert "797 GB" in result.err.splitlines()[0]


def _refuse(*_: object, **__: object) -> None:
    raise HubError("no network in tests")
