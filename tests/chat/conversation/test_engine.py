"""A model's name that means the same in another folder."""

from pathlib import Path

import pytest

from afmoe_mlx.chat.conversation.engine import lasting_name


def test_a_folders_name_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("mine", "demo"):
        Path(name).mkdir()
    assert lasting_name("mine") == lasting_name("~/mine") == str(tmp_path / "mine")
    assert [lasting_name(name) for name in ("demo", "trinity-nano", "a/b")] == ["demo", "trinity-nano", "a/b"]
