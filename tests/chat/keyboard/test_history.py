"""The history of what was typed: never cut, shared, never in the way."""

import json
from pathlib import Path

import pytest

from afmoe_mlx.chat.keyboard import history as module
from afmoe_mlx.chat.keyboard.history import KEPT, History


def test_the_last_entries_are_gone_through_and_all_stay(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lines = [json.dumps(f"entry {i}") for i in range(2 * KEPT + 1)]
    path.write_text("\n".join([*lines, "[]", "damaged", '"written in pa']))
    before = path.read_bytes()
    history = History(path)
    assert history.entries == [f"entry {i}" for i in range(KEPT + 1, 2 * KEPT + 1)]
    history.append("after a line that was cut off")
    assert path.read_bytes().startswith(before)
    assert History(path).entries == [*history.entries[-KEPT:]]


def test_no_more_of_a_long_file_is_read_than_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    entries = [*(f"entry {i}" for i in range(100)), 'he said "yes" and "no"', "last"]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    for length in range(1, 80):  # wherever a line is cut
        monkeypatch.setattr(module, "KEPT_BYTES", length)
        found = History(path).entries
        assert found == entries[len(entries) - len(found) :]


def test_a_history_never_stands_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("in the way of the folder")
    history = History(folder / "history.jsonl")
    history.append("kept for this run")
    assert history.entries == ["kept for this run"]


def test_two_chats_write_to_one_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    one, other = History(path), History(path)
    for entry in ("a", "b"):
        one.append(f"one {entry}")
        other.append(f"other {entry}")
    assert History(path).entries == ["one a", "other a", "one b", "other b"]
