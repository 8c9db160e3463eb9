"""The history of what was typed: cut, shared, never in the way."""

import json
from pathlib import Path

from afmoe_mlx.chat.keyboard.history import KEPT, History


def test_a_history_is_cut_keeps_to_what_it_can_read_and_never_stands_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lines = [json.dumps(f"entry {i}") for i in range(2 * KEPT + 1)]
    path.write_text("\n".join([*lines, '"written in pa']))
    assert History(path).entries == [f"entry {i}" for i in range(KEPT + 1, 2 * KEPT + 1)]
    assert len(path.read_text().splitlines()) == KEPT
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
