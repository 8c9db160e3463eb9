"""Saved chats: what has ended is in the file whatever happens next, and no chat writes into another's."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeConversation
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_folder

from afmoe_mlx import load
from afmoe_mlx.cache import PrefixStore, default_directory
from afmoe_mlx.chat import Conversation, paths
from afmoe_mlx.chat.sessions import session as session_file
from afmoe_mlx.chat.sessions.folder import SessionFolder, prefix_directory, slug
from afmoe_mlx.chat.sessions.log import SessionState, changes, encode, replay, whole
from afmoe_mlx.errors import SessionError
from afmoe_mlx.terminal import printable


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    return SessionFolder(tmp_path / "data" / "sessions")


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def talk(messages: Sequence[dict[str, Any]] = (), **options: Any) -> FakeConversation:
    conversation = FakeConversation(options={"max_tokens": 9, **options})
    conversation.restore(messages)
    return conversation


def written(folder: SessionFolder, *texts: str, name: str = "one") -> Path:
    """The file of a session that has ended."""
    with folder.create(name) as session:
        session.save(talk(said(*texts)))
        return session.path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what is written


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


messages = st.lists(
    st.builds(
        lambda role, content, stopped: {"role": role, "content": content} | ({"stopped": True} if stopped else {}),
        st.sampled_from(["user", "assistant"]),
        st.text(max_size=8),
        st.booleans(),
    ),
    max_size=5,
)
states = st.builds(
    lambda model, options, system, said: SessionState(model=model, settings=options, system=system, messages=said),
    st.text(max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.booleans(), max_size=2),
    st.none() | st.text(max_size=4),
    messages.map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(states=st.lists(states, min_size=1, max_size=4), cut=st.integers(0, 400))
def test_any_history_is_replayed_and_a_cut_loses_the_last_line_alone(states: list[SessionState], cut: int) -> None:
    records = whole(states[0])
    for before, after in pairwise(states):
        records += changes(before, after)
    content = b"".join(map(encode, records))
    found = replay(content, "x")
    assert (found.state, found.warnings, found.end) == (states[-1], [], len(content))
    end = max(len(encode(records[0])), len(content) - cut)
    complete = content[:end].count(b"\n")
    expected = replay(b"".join(map(encode, records[:complete])), "x")
    short = replay(content[:end], "x")
    if short.warnings or content[:end].endswith(b"\n"):
        assert (short.state, short.end) == (expected.state, expected.end)
    else:  # all of the line but its end is there
        assert short.state == replay(content[: end + 1], "x").state


# --- damage


@pytest.mark.parametrize(
    "tail", [b'{"type": "mess', b"\0" * 300, b'{"type": "message", "role": "user"}\n', b"[]\n", b"\xff\n"]
)
def test_a_damaged_last_line_is_dropped_with_a_word_and_written_over(folder: SessionFolder, tail: bytes) -> None:
    path = written(folder, "hello", "fine")
    whole_file = path.read_bytes()
    path.write_bytes(whole_file + tail)
    with folder.open("one") as session:
        assert session.messages == said("hello", "fine")
        assert session.warnings == [
            "the last line is damaged and left out: it was being written when the program ended"
        ]
        assert path.read_bytes() == whole_file
        session.save(talk(said("hello", "fine", "more")))
    with folder.open("one") as session:
        assert (session.warnings, session.messages) == ([], said("hello", "fine", "more"))


def test_a_last_line_without_its_end_is_whole_and_gets_one(folder: SessionFolder) -> None:
    path = written(folder, "hello", "fine")
    path.write_bytes(path.read_bytes()[:-1])
    with folder.open("one") as session:
        session.save(talk(said("hello", "fine", "more")))
    with folder.open("one") as session:
        assert (session.warnings, session.messages) == ([], said("hello", "fine", "more"))


def test_what_is_damaged_or_unknown_in_the_middle_is_left_out_with_a_word_and_stays(folder: SessionFolder) -> None:
    path = written(folder, "hello", "fine")
    content = path.read_bytes().splitlines(keepends=True)
    odd = [
        b"garbage\n",
        b'{"type": "\\u001b[2J"}\n',
        b'{"type": "replace", "at": -1, "messages": []}\n',
        b'{"type": []}\n',
    ]
    path.write_bytes(b"".join([*content[:-1], *odd, content[-1]]))
    with folder.open("one") as session:
        assert session.messages == said("hello", "fine")
        first = len(content)
        assert session.warnings == [
            f"line {first} is damaged and left out",
            f"line {first + 1} is of a kind that this program does not know, \\x1b[2J",
            f"line {first + 2} is damaged and left out",
            f"line {first + 3} is damaged and left out",
        ]
    assert b"garbage" in path.read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"type": "session", "format": 2}\n', "one has format 2, this program knows 1: update afmoe-mlx"),
        (b'{"type": "message"}\n', "one is damaged or no saved chat"),
        (b"hello\n", "one is damaged or no saved chat"),
        (b"[" * 100_000, "one is damaged or no saved chat"),
    ],
)
def test_another_format_is_refused_by_name_and_left_as_it_is(folder: SessionFolder, content: bytes, words: str) -> None:
    path = written(folder, "hello")
    path.write_bytes(content)
    with pytest.raises(SessionError, match=words):
        folder.open("one")
    assert path.read_bytes() == content
    assert words in folder.list()[0].trouble


def test_a_file_of_which_most_was_replaced_is_rewritten_when_opened(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "LONG", 1000)
    with folder.create("one", model="demo") as session:
        created = lines(session.path)[0]["created"]
        for i in range(50):
            session.save(talk(said("hello", f"fine {i} " * 5)))
        long = session.path.stat().st_size
    with folder.open("one") as session:
        assert session.path.stat().st_size < long / 10
        assert (session.messages, session.model) == (said("hello", "fine 49 " * 5), "demo")
        with pytest.raises(SessionError, match="open in a chat already"):
            folder.open("one")
        session.save(talk(said("hello", "fine", "more")))
    with folder.open("one") as session:
        assert session.messages == said("hello", "fine", "more")
    assert lines(session.path)[0]["created"] == created
    assert [path.name for path in folder.path.iterdir()] == ["one.jsonl"]


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
from fake_engine import FakeConversation
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
    command = [sys.executable, "-c", CRASH, str(folder.path), str(Path(__file__).parent)]
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


# --- several chats, several sessions


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


# --- resuming


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
