"""A text to calibrate with."""

import json
from pathlib import Path

import pytest

from helpers.calibrated import PROSE


@pytest.fixture(name="text", scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.jsonl"
    lines = [{"text": PROSE * 3}, {"messages": [{"role": "user", "content": "hello"}]}, {"text": PROSE[40:]}]
    lines += [{"text": f"{i} worlds say {PROSE[i : 2 * i + 9]}"} for i in range(30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
