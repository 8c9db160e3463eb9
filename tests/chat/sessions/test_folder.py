"""Sessions are found by name, named safely, and private."""

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx import load
from afmoe_mlx.cache import PrefixStore, default_directory
from afmoe_mlx.chat import Conversation, paths
from afmoe_mlx.chat.sessions import session as session_file
from afmoe_mlx.chat.sessions.folder import SessionFolder, prefix_directory, slug
from afmoe_mlx.errors import SessionError
from afmoe_mlx.terminal import printable
from helpers.session_files import said, talk, written
from helpers.tiny import tiny_folder


def test_a_new_name_takes_all_along_and_no_others(folder: SessionFolder) -> None:
    written(folder, "other", name="taken")
    with folder.create("one") as session:
        session.save(talk(said("hello")))
        with pytest.raises(SessionError, match="there is a session taken already: choose another name"):
            session.rename("taken")
        session.rename("two")
        session.rename("two")
        session.save(talk(said("hello", "fine")))
        with pytest.raises(SessionError, match="open in a chat already"):
            folder.open("two")
    assert sorted(folder.names()) == ["taken", "two"]
    with folder.open("two") as session:
        assert session.messages == said("hello", "fine")
    with pytest.raises(SessionError, match="there is a session two already"):
        folder.create("two")


@pytest.mark.parametrize(
    "name", ["", "  ", "a/b", "..", ".hidden", "-x", "a\\b", "a\x1b[2Jb", "a\nb", "a\u202eb", "x" * 81, "日" * 70]
)
def test_a_name_that_could_do_harm_is_refused_and_shown_escaped(folder: SessionFolder, name: str) -> None:
    with pytest.raises(SessionError, match="choose another") as caught:
        folder.create(name)
    assert printable(str(caught.value)) == str(caught.value)
    with folder.create("one") as session, pytest.raises(SessionError):
        session.rename(name)


@given(st.text())
@settings(max_examples=60, deadline=None)
def test_any_first_message_gives_a_name_for_a_file(text: str) -> None:
    made = slug(text)
    assert len(made) <= 40
    assert made == "" or session_file.checked_name(f"2026-11-24-{made}")


def test_sessions_are_found_by_name_by_its_beginning_and_by_default_the_last(folder: SessionFolder) -> None:
    with pytest.raises(SessionError, match="there are no saved chats yet"):
        folder.open()
    for age, name in enumerate(["apple", "apricot", "banana"]):
        os.utime(written(folder, f"about {name}\x1b[2J", "fine", name=name), (10**9 - age, 10**9 - age))
    assert folder.names() == ["apple", "apricot", "banana"]
    for asked, found in ((None, "apple"), ("ban", "banana"), ("apricot", "apricot")):
        with folder.open(asked) as session:
            assert session.name == found
    with pytest.raises(SessionError, match="ap begins 2 sessions: apple, apricot"):
        folder.open("ap")
    with pytest.raises(SessionError, match=r"no session bananna: did you mean banana\?"):
        folder.open("bananna")
    with pytest.raises(SessionError, match="no session zzz: there are apple, apricot, banana"):
        folder.open("zzz")
    info = folder.list()[0]
    assert (info.name, info.turns, info.first_words, info.trouble) == ("apple", 1, "about apple\\x1b[2J", "")


def test_the_files_are_for_their_owner_alone(folder: SessionFolder) -> None:
    before = os.umask(0)
    try:
        path = written(folder, "hello")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError, match="cannot be written"):
        SessionFolder(tmp_path / "file" / "sessions").create()
    assert SessionFolder(tmp_path / "file" / "sessions").list() == []


def test_data_lies_where_the_system_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert SessionFolder().path == tmp_path / "afmoe-mlx" / "sessions"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative/ones/do/not/count")
    monkeypatch.setattr(sys, "platform", "linux")
    assert paths.data_folder() == tmp_path / ".local/share/afmoe-mlx"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert paths.data_folder() == tmp_path / "Library/Application Support/afmoe-mlx"


def test_prefixes_are_kept_with_sessions_unless_told_otherwise() -> None:
    default = str(default_directory())
    assert prefix_directory(None, wanted=None, is_saved=True) == default
    assert prefix_directory(None, wanted=None, is_saved=False) is None
    assert prefix_directory(None, wanted=False, is_saved=True) is None
    assert prefix_directory("/x", wanted=None, is_saved=True) == "/x"


def test_a_resumed_conversation_is_not_read_again(folder: SessionFolder, tmp_path: Path) -> None:
    """By a model and a store that know nothing but what is on the disk."""
    model_folder = tiny_folder(tmp_path / "model", max_position_embeddings=4096)
    block_size = 32

    def resumed(session: Any) -> Conversation:
        model, tokenizer = load(model_folder)
        store = PrefixStore(model, directory=tmp_path / "prefixes", block_size=block_size)
        conversation = Conversation(model, tokenizer, options={"max_tokens": 30}, store=store)
        conversation.restore(session.messages)
        return conversation

    with folder.create("one") as session:
        first = resumed(session)
        for text in ("hello " * 100, "the world " * 100):
            list(first.reply(text))
            session.save(first)
        assert first.store is not None
        first.store.flush()
        held = len(first._recall.tokens)
    with folder.open() as session:
        second = resumed(session)
        chunks = second.regenerate()
        assert held > 300
        assert second.tokens_run <= block_size
        assert "".join(chunk.text for chunk in chunks) == first.last_answer
