"""Commands that read and write: /file, /copy, /save, /load, /sessions, /export."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from afmoe_mlx.chat.commands.files import code_blocks
from afmoe_mlx.chat.sessions.folder import SessionFolder
from helpers.fake_engine import FakeConversation
from helpers.talk import Talk


def test_sessions_are_named_listed_and_taken_up_again(talk: Callable[..., Talk]) -> None:
    talk("about whales", "/set temperature 0.5", "/save whales")
    found = talk("/sessions", "/load wha", "and on", "/save", "/load whales", "/sessions")
    assert found.said == ["about whales", "first answer", "and on", "first answer"]
    assert found.conversation.options["temperature"] == 0.5
    assert re.search(r"^whales +1 turn +about whales", found.shown, re.MULTILINE)
    assert re.search(r"^whales +2 turns +this one", found.shown, re.MULTILINE)
    assert "> about whales" in found.shown


def test_without_saving_nothing_is_written_until_it_is_asked_for(talk: Callable[..., Talk], tmp_path: Path) -> None:
    talk("hello", "/new", "again", saves=False)
    assert not (tmp_path / "sessions").exists()
    talk("hello", "/save kept", saves=False)
    assert [info.name for info in SessionFolder(tmp_path / "sessions").list()] == ["kept"]


@pytest.mark.parametrize("leaves", [True, False])
def test_what_is_not_saved_is_left_for_another_conversation_only_if_the_user_says_so(
    talk: Callable[..., Talk], leaves: bool
) -> None:
    talk("about whales", "/save whales")
    found = talk("unsaved", "/load whales", saves=False, answers=[leaves])
    assert found.reader.questions == ["What was said here is not saved. Leave it all the same?"]
    assert found.said[0] == ("about whales" if leaves else "unsaved")


def test_control_characters_of_a_session_are_shown_in_every_list(talk: Callable[..., Talk]) -> None:
    talk("evil \x1b]0;title\x07\x1b[2J", "/save s")
    for found in (talk("/sessions"), talk("/load s", "/regenerate", "/undo", "/new", "/stats")):
        assert "\x1b" not in found.shown
        assert "\x07" not in found.shown
        assert "\\x1b]0;title" in found.shown


def test_a_file_goes_with_the_next_message_alone(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("the notes\n")
    Path("data.bin").write_bytes(b"\0\1")
    found = talk("/file notes.txt", "/file data.bin", "/file", "what is in it?", "/file", "and now?")
    assert found.said[0].endswith("the notes\n```\n\nwhat is in it?")
    assert found.said[2] == "and now?"
    assert "error: data.bin is a binary file" in found.shown
    assert "Nothing is attached" in found.shown
    assert talk("/file notes.txt", "/file none", "hello").said[0] == "hello"
    Path("long.txt").write_text("word " * 3000)
    assert "longer than the context of 4,096 tokens" in talk("/file long.txt").shown


def test_a_file_stays_attached_when_its_message_is_not_sent(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("the notes\n")
    conversation = FakeConversation(["a b c d e f g h"] * 9, context=60)
    found = talk("one two three four", "/file notes.txt", "one two three", conversation=conversation, answers=[False])
    assert len(found.said) == 2
    assert [attachment.name for attachment in found.chat.attachments] == ["notes.txt"]


def test_export_writes_and_asks_before_it_writes_over(
    talk: Callable[..., Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = talk("hello", "/export chat.json", "/export chat.json", "/export chat.json", answers=[False, True])
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "first answer"}]
    assert json.loads(Path("chat.json").read_text())["messages"] == messages
    assert found.shown.count("Written to chat.json") == 2
    assert "Nothing is written." in found.shown
    assert "expected .md or .json" in talk("hello", "/export chat.pdf").shown


ANSWER = "<think>secret</think>Look:\n\n```python\nprint(1)\n```\n\n- then\n\n  ~~~\n  two\n  ~~~\n"


def test_copy_takes_the_answer_without_its_reasoning_or_a_block_of_code(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSH_CONNECTION", "1")
    found = talk("hello", "/copy", "/copy 2", "/copy 3", conversation=FakeConversation([ANSWER]))
    copied = [base64.b64decode(text).decode() for text in re.findall("\x1b]52;c;([^\x07]*)\x07", found.shown)]
    assert copied == [ANSWER.removeprefix("<think>secret</think>").strip(), "two\n"]
    assert "block 2 of 2" in found.shown
    assert "error: /copy 3: the last answer has 2 blocks of code" in found.shown
    assert code_blocks("no code") == []


def test_nothing_is_called_saved_that_is_not(talk: Callable[..., Talk], tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("no folder")
    for found in (talk("hello"), talk("hello", "/new")):
        assert "cannot be written" in found.shown
        assert not re.search("is saved|Saved", found.shown)
    assert "not saved" in talk("hello").shown


def test_a_session_is_written_anew_where_its_folder_was_removed(talk: Callable[..., Talk], tmp_path: Path) -> None:
    def remove() -> str:
        shutil.rmtree(tmp_path / "sessions")
        return "again"

    found = talk("hello", remove)
    assert "error" not in found.shown
    assert len(list((tmp_path / "sessions").iterdir())) == 1


def test_the_name_of_a_session_is_escaped_once(talk: Callable[..., Talk]) -> None:
    assert "the name 'a\\x1bb\\u202ec' has control" in talk("hello", "/save a\x1bb\u202ec").shown
