"""A session's file is replayed whole, and what is damaged is left out with a word."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.chat.sessions import session as session_file
from afmoe_mlx.chat.sessions.folder import SessionFolder
from afmoe_mlx.chat.sessions.log import SessionState, changes, encode, replay, whole
from afmoe_mlx.errors import SessionError
from helpers.session_files import messages, said, talk, written

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


CUT_OFF = "the last line is cut off and left out: it was being written when the program ended"


@pytest.mark.parametrize("tail", [b'{"type": "mess', b"\0" * 300, b'"\xff'])
def test_a_last_line_that_is_cut_off_goes_to_a_file_beside(folder: SessionFolder, tail: bytes) -> None:
    path = written(folder, "hello", "fine")
    aside = path.with_name("one.jsonl.old")
    for times in (1, 2):
        whole_file = path.read_bytes()
        path.write_bytes(whole_file + tail)
        with folder.open("one") as session:
            assert (session.messages, session.warnings) == (said("hello", "fine"), [CUT_OFF])
            assert path.read_bytes() == whole_file
            assert aside.read_bytes() == (tail + b"\n") * times
    assert aside.stat().st_mode & 0o777 == 0o600
    assert folder.names() == ["one"]
    with folder.open("one") as session:
        session.save(talk(said("hello", "fine", "more")))
    with folder.open("one") as session:
        assert (session.warnings, session.messages) == ([], said("hello", "fine", "more"))


CALL = b'{"type": "message", "role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "function": {}}]}\n'


@pytest.mark.parametrize("line", [b'{"type": "message", "role": "user"}\n', CALL, b"[]\n", b"\xff\n", b"x\n\n  \n"])
def test_a_damaged_last_line_that_has_its_end_stays_in_the_file(folder: SessionFolder, line: bytes) -> None:
    path = written(folder, "hello", "fine")
    number = path.read_bytes().count(b"\n") + 1
    path.write_bytes(path.read_bytes() + line)
    with folder.open("one") as session:
        assert session.messages == said("hello", "fine")
        assert session.warnings == [f"line {number} is damaged and left out"]
        session.save(talk(said("hello", "fine", "more")))
    assert line in path.read_bytes()
    with folder.open("one") as session:
        assert session.messages == said("hello", "fine", "more")


def test_without_room_for_a_copy_nothing_is_cut_off(folder: SessionFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder, "hello", "fine")
    path.write_bytes(path.read_bytes() + b'{"type": "mess')
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session_file, "_set_aside", full)
        with folder.open("one") as session:
            assert session.messages == said("hello", "fine")
            assert session.warnings == [
                CUT_OFF,
                "it cannot be written to (No space left on device): what is said from here on is not saved",
            ]
            with pytest.raises(SessionError, match="No space left"):
                session.save(talk(said("hello", "fine", "more")))
    assert path.read_bytes() == before


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
        session.rename("two")
        assert all(line in session.path.read_bytes() for line in odd)


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
