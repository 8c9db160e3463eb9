"""Exports: the whole conversation, in a file that is whole or not there and drives no terminal."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.chat.sessions.export import as_json, as_markdown, export_conversation
from afmoe_mlx.errors import InputError
from afmoe_mlx.terminal import printable

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why is 天 blue?"},
    {"role": "assistant", "content": "<think>\nLight…\n</think>\n\n**Scattering** of light."},
    {"role": "user", "content": "More\x1b[2J"},
    {"role": "assistant", "content": "Well", "stopped": True},
    {"role": "assistant", "content": "Too", "cut_off": True},
]
MADE_WITH: dict[str, Any] = {"model": "demo", "settings": {"temperature": 0.5, "seed": None, "draft_model": object()}}


def test_markdown_has_every_message_under_its_heading(tmp_path: Path) -> None:
    path = export_conversation(tmp_path / "chat.md", MESSAGES, **MADE_WITH)
    assert path.read_text(encoding="utf-8") == (
        "# Chat with demo\n\ntemperature 0.5\n\n## System prompt\n\nBe brief.\n\n## User\n\nWhy is 天 blue?\n\n"
        "## Assistant\n\n<details><summary>Reasoning</summary>\n\nLight…\n\n</details>\n\n"
        "**Scattering** of light.\n\n## User\n\nMore\\x1b[2J\n\n## Assistant\n\nWell\n\n*(stopped)*\n\n"
        "## Assistant\n\nToo\n\n*(cut off)*\n"
    )


def test_json_has_the_messages_as_they_are(tmp_path: Path) -> None:
    path = export_conversation(str(tmp_path / "chat.JSON"), MESSAGES, **MADE_WITH)
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told == {"model": "demo", "settings": {"temperature": 0.5}, "messages": MESSAGES}


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec=None), min_size=1))
def test_nothing_in_an_export_drives_a_terminal(text: str) -> None:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    for write in (as_markdown, as_json):
        written = write(messages, model=text, settings={"a": text})
        assert printable(written) == written
    assert json.loads(written)["messages"] == messages


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    path.write_text("mine")
    with pytest.raises(InputError, match="is there already: give another name"):
        export_conversation(path, MESSAGES, **MADE_WITH)
    assert path.read_text() == "mine"
    export_conversation(path, MESSAGES, **MADE_WITH, overwrite=True)
    assert path.read_text().startswith("# Chat")


def test_a_link_to_nowhere_is_there_too(tmp_path: Path) -> None:
    (tmp_path / "chat.md").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is there already"):
        export_conversation(tmp_path / "chat.md", MESSAGES, **MADE_WITH)


@pytest.mark.parametrize(
    ("name", "messages", "words"),
    [
        ("chat.txt", MESSAGES, r"ends in \.txt: expected \.md or \.json"),
        ("chat", MESSAGES, r"ends in nothing: expected \.md or \.json"),
        ("chat.md", [], "the conversation is empty"),
        ("none/chat.md", MESSAGES, "its folder is not there"),
        ("folder.md", MESSAGES, "it is a folder"),
        ("x" * 300 + ".md", MESSAGES, "cannot be written: File name too long"),
        ("a\0.md", MESSAGES, "cannot be written: embedded null byte"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_line(tmp_path: Path, name: str, messages: Any, words: str) -> None:
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(InputError, match=words):
        export_conversation(tmp_path / name, messages, **MADE_WITH)
    assert os.listdir(tmp_path) == ["folder.md"]


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.md"
    path.write_text("mine")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        export_conversation(path, MESSAGES, **MADE_WITH, overwrite=True)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["chat.md"]


def test_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert export_conversation("~/chat.md", MESSAGES, **MADE_WITH) == tmp_path / "chat.md"
