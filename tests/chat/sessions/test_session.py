"""A saved chat: what has ended is in the file whatever happens next, and no chat writes into another's."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from afmoe_mlx.chat.conversation import settings
from afmoe_mlx.chat.sessions import session as session_file
from afmoe_mlx.chat.sessions.folder import SessionFolder
from afmoe_mlx.chat.sessions.log import replay
from afmoe_mlx.errors import SessionError
from afmoe_mlx.terminal import printable
from helpers import TESTS
from helpers.fake_engine import FakeConversation
from helpers.session_files import said, talk, written


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_message_is_in_the_file_when_it_ends(folder: SessionFolder) -> None:
    conversation = FakeConversation(["fine"], system_prompt="be")
    session = folder.create("one", model="demo")
    chunks = conversation.reply("hello")
    session.save(conversation)
    assert lines(session.path)[-1] == {"type": "message", "role": "user", "content": "hello"}
    list(chunks)
    session.save(conversation)
    found = replay(session.path.read_bytes(), "one").state
    assert (found.model, found.system) == ("demo", "be")
    assert session.messages == conversation.messages == [{"role": "system", "content": "be"}, *found.messages]
    assert lines(session.path)[0].keys() == {"type", "format", "model", "created"}


def test_nothing_new_writes_nothing(folder: SessionFolder) -> None:
    with folder.create() as session:
        session.save(talk(said("hello", "fine")))
        before = session.path.stat()
        session.save(talk(said("hello", "fine")))
        assert session.path.stat() == before


def test_a_broken_off_answer_stays_one(folder: SessionFolder) -> None:
    conversation = FakeConversation([["par", KeyboardInterrupt()]])
    with suppress(KeyboardInterrupt):
        list(conversation.reply("hello"))
    with folder.create("one") as session:
        session.save(conversation)
    with folder.open("one") as session:
        assert session.messages[-1] == {"role": "assistant", "content": "par", "stopped": True}


def test_a_change_of_what_was_said_is_one_record(folder: SessionFolder) -> None:
    """So that half of it is never on the disk."""
    path = written(folder, "1", "a", "2", "b", "3", "c")
    for now in (said("1", "a"), said("2", "b", "3", "c"), said("2", "B", "4"), []):
        before = len(lines(path))
        with folder.open("one") as session:
            session.save(talk(now))
            assert session.messages == now
        assert len(lines(path)) == before + 1
        with folder.open("one") as session:
            assert session.messages == now


def test_the_model_and_the_settings_are_kept(folder: SessionFolder) -> None:
    with folder.create("one", model="demo") as session:
        session.save(talk(temperature=0.5, seed=None, draft_model=object()))
        session.save(talk(temperature=0.7), model="trinity-nano")
    with folder.open("one") as session:
        assert (session.model, session.settings) == ("trinity-nano", {"max_tokens": 9, "temperature": 0.7})


def test_settings_of_every_kind_come_back_as_they_were(folder: SessionFolder) -> None:
    options: dict[str, Any] = {"stop": ["END"], "logit_bias": {42: -5.0}, "presence_penalty": 0.5}
    with folder.create("one", model="demo") as session:
        session.save(talk(**options))
    with folder.open("one") as session:
        found = settings.usable(session.settings)
        shown = [setting for setting in settings.current(found, {}) if setting.source == "set"]
        assert {setting.name: setting.value for setting in shown} == {"max_tokens": 9} | options
        before = len(lines(session.path))
        session.save(talk(**found))
        session.save(talk(**options))
        assert len(lines(session.path)) == before


def test_a_file_of_which_most_was_replaced_is_rewritten_when_opened(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "LONG", 1000)
    with folder.create("one", model="demo") as session:
        created = lines(session.path)[0]["created"]
        for i in range(50):
            session.save(talk(said("hello", f"fine {i} " * 5)))
        before = session.path.read_bytes()
        long = len(before)
    with folder.open("one") as session:
        assert session.path.stat().st_size < long / 10
        assert (session.messages, session.model) == (said("hello", "fine 49 " * 5), "demo")
        with pytest.raises(SessionError, match="open in a chat already"):
            folder.open("one")
        session.save(talk(said("hello", "fine", "more")))
    with folder.open("one") as session:
        assert session.messages == said("hello", "fine", "more")
    assert lines(session.path)[0]["created"] == created
    old = folder.path / "one.jsonl.old"
    assert {path.name for path in folder.path.iterdir()} == {"one.jsonl", old.name}
    assert old.read_bytes() == before
    with folder.open("one") as session:
        session.rename("two")
    assert {path.name for path in folder.path.iterdir()} == {"two.jsonl", "two.jsonl.old"}


def test_a_read_only_file_is_continued_and_says_that_nothing_is_saved(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder, "hello")
    with path.open("ab") as file:
        file.write(b'{"type": "mess')
    before, real = path.read_bytes(), os.open

    def read_only(name: Any, flags: int, *mode: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(name, flags, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        session = folder.open("one")
        with session:
            assert session.messages == said("hello")
            assert "Read-only file system" in session.warnings[-1]
            session.save(talk(said("hello")))  # nothing new, nothing to complain of
            with pytest.raises(SessionError, match=r"one\.jsonl: cannot be written: Read-only file system"):
                session.save(talk(said("hello", "fine")))
    assert path.read_bytes() == before
    with folder.open("one") as session:
        assert session.messages == said("hello")


def test_a_file_that_cannot_be_rewritten_is_used_as_it_is(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder.create("one") as session:
        for i in range(50):
            session.save(talk(said("hello", f"fine {i}")))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session_file, "LONG", 1000)
        patch.setattr(session_file, "sync", full)
        session = folder.open("one")
    with session:
        session.save(talk(said("hello", "fine 49", "more")))
        with pytest.raises(SessionError, match="open in a chat already"):
            folder.open("one")
    assert replay_messages(session.path) == said("hello", "fine 49", "more")
    assert [path.name for path in folder.path.iterdir()] == ["one.jsonl"]


def test_control_characters_are_shown_when_the_file_is_looked_at(folder: SessionFolder) -> None:
    nasty = (
        "".join(map(chr, [*range(32), *range(0x7F, 0xA0), *range(0x200B, 0x2010), *range(0x2028, 0x2070)]))
        + "\ud800é日"
    )
    path = written(folder, nasty)
    text = path.read_text()
    assert printable(text) == text
    assert "é日" in text
    with folder.open("one") as session:
        assert session.messages == said(nasty)


CRASH = """
import sys, itertools
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from helpers.fake_engine import FakeConversation
from afmoe_mlx.chat.sessions.folder import SessionFolder
session = SessionFolder(Path(sys.argv[1])).create("one")
conversation = FakeConversation(f"answer {i}" for i in range(100000))
for i in itertools.count():
    chunks = conversation.reply(f"message {i}")
    session.save(conversation)
    for _ in chunks:
        pass
    session.save(conversation)
    print(i, flush=True)
"""


def test_a_killed_program_loses_nothing_that_has_ended(folder: SessionFolder) -> None:
    command = [sys.executable, "-c", CRASH, str(folder.path), str(TESTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 25:
                process.send_signal(signal.SIGKILL)
                break
        last = max([25, *map(int, process.stdout)])
    with folder.open("one") as session:
        contents = [message["content"] for message in session.messages]
    expected = [text for i in range(last + 3) for text in (f"message {i}", f"answer {i}")]
    assert len(contents) >= 2 * (last + 1)
    assert contents == expected[: len(contents)]


def test_a_full_disk_leaves_the_file_as_it_was(folder: SessionFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    session = folder.create("one")
    session.save(talk(said("hello")))
    before = session.path.read_bytes()
    real, rest = os.write, [20]

    def write(descriptor: int, data: bytes) -> int:
        if not rest[0]:
            raise OSError(28, "No space left on device")
        done = real(descriptor, bytes(data)[: rest[0]])
        rest[0] -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(SessionError, match="cannot be written: No space left"):
            session.save(talk(said("hello", "fine")))
    assert session.path.read_bytes() == before
    session.save(talk(said("hello", "fine")))
    assert session.messages == replay_messages(session.path) == said("hello", "fine")


def replay_messages(path: Path) -> list[dict[str, Any]]:
    return list(replay(path.read_bytes(), path.name).state.messages)


def test_two_chats_never_have_the_same_session(folder: SessionFolder) -> None:
    with folder.create(words="Why is the sky blue?") as first, folder.create(words="Why is the sky blue?") as second:
        assert second.name == first.name + "-2"
        assert first.name.endswith("-why-is-the-sky-blue")
        for taken in (first.name, None):
            with pytest.raises(SessionError, match="is open in a chat already"):
                folder.open(taken if taken else folder.names()[0])
    with folder.open(first.name) as again:
        assert again.name == first.name


def test_a_session_whose_file_was_deleted_is_written_anew(folder: SessionFolder) -> None:
    with folder.create("one") as session:
        session.save(talk(said("hello", "fine")))
        session.path.unlink()
        session.save(talk(said("hello", "fine", "more")))
        assert replay_messages(session.path) == said("hello", "fine", "more")


def test_a_session_never_writes_over_a_file_put_in_its_place(folder: SessionFolder) -> None:
    session = folder.create("one")
    session.save(talk(said("hello")))
    session.path.rename(session.path.with_name("elsewhere.jsonl"))
    path = written(folder, "other")
    with pytest.raises(SessionError, match="another chat's now"):
        session.save(talk(said("hello", "fine")))
    session.rename("two")
    session.save(talk(said("hello", "fine")))
    assert replay_messages(path) == said("other")
    assert replay_messages(session.path) == said("hello", "fine")


def test_a_session_keeps_its_file_and_its_lock_under_another_name(folder: SessionFolder) -> None:
    path = written(folder, "hello")
    before = path.read_bytes()
    written(folder, "other", name="two")
    with folder.open("one") as session:
        with pytest.raises(SessionError, match="there is a session two already"):
            session.rename("two")
        session.rename("three")
        assert session.path.read_bytes() == before
        assert not path.exists()
        with pytest.raises(SessionError, match="open in a chat already"):
            folder.open("three")
        session.save(talk(said("hello", "fine")))
    assert sorted(folder.names()) == ["three", "two"]
    with folder.open("three") as session:
        assert session.messages == said("hello", "fine")


def test_a_name_may_change_in_case_alone_on_a_disk_that_does_not_tell(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder, "hello")
    real = os.open

    def fold(name: Any, flags: int, *mode: int, **more: Any) -> int:
        if flags & os.O_EXCL and Path(name).name.casefold() == path.name:
            raise FileExistsError(errno.EEXIST, "File exists")
        return real(name, flags, *mode, **more)

    with folder.open("one") as session:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fold)
            patch.setattr(os.path, "samefile", lambda *paths: len({str(each).casefold() for each in paths}) == 1)
            session.rename("One")
        session.save(talk(said("hello", "fine")))
    assert folder.names() == ["One"]
    with folder.open("One") as session:
        assert session.messages == said("hello", "fine")
