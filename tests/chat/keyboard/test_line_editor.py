"""The line editor: keys, search, completion, without a terminal."""

import io
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.input.base import PipeInput
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output

from afmoe_mlx.chat.keyboard.completion import Candidate
from afmoe_mlx.chat.keyboard.history import History
from afmoe_mlx.chat.keyboard.line_editor import LineEditor

ENTER, CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_R = "\r", "\x03", "\x04", "\x07", "\n", "\x12"

ALT_ENTER, UP, LEFT = "\x1b\r", "\x1b[A", "\x1b[D"

PASTE = "\x1b[200~{}\x1b[201~"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as keys:
        yield keys


def editor(keys: PipeInput, history: History | None = None) -> LineEditor:
    return LineEditor(history or History(None), lambda text: (), input=keys, output=DummyOutput())


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("hello" + ENTER, "hello"),
        ("one" + ALT_ENTER + "two" + ENTER, "one\ntwo"),
        ("one" + CTRL_J + "two" + ENTER, "one\ntwo"),
        (PASTE.format("def f():\r    return 1\r\n") + ENTER, "def f():\n    return 1\n"),
        (PASTE.format("one\rtwo") + " three" + ENTER, "one\ntwo three"),
        ("wrong" + CTRL_C + "right" + ENTER, "right"),
        (CTRL_C + "still here" + ENTER, "still here"),
        (CTRL_C + "x" + CTRL_C + CTRL_C + "still here" + ENTER, "still here"),
        ("日本語 👩‍👩‍👧" + ENTER, "日本語 👩‍👩‍👧"),
    ],
)
def test_keys_make_a_message(keys: PipeInput, typed: str, message: str) -> None:
    keys.send_text(typed)
    assert editor(keys).read() == message


def test_marks_that_reorder_a_line_are_kept_and_not_sent_to_the_terminal(keys: PipeInput) -> None:
    shown = io.StringIO()
    output = Vt100_Output(shown, lambda: Size(24, 80), term="xterm")
    keys.send_text("a\u202ebc\u2066d" + ENTER)
    assert LineEditor(History(None), lambda text: (), input=keys, output=output).read() == "a\u202ebc\u2066d"
    assert "bc" in shown.getvalue()
    assert not set("\u202e\u2066") & set(shown.getvalue())


@pytest.mark.parametrize(
    "code", ["\x1b[31m", "\x1b[0;1m", "\x1b[38;5;196m", "\x1b[1;2;3;4m", "\x1b[;m", "\x1b[Mzzz", "\x1b[<1m"]
)
def test_colours_that_arrive_as_if_typed_are_skipped(keys: PipeInput, code: str) -> None:
    keys.send_text(code + "red" + ENTER + code + "y" + ENTER)
    reader = editor(keys)
    assert reader.read() == "red"
    assert reader.confirm("Really?")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (CTRL_R + "fir" + CTRL_C, "x"),
        ("ab" + CTRL_R + "fir" + CTRL_C, "abx"),
        ("ab" + LEFT + CTRL_R + "of" + CTRL_R + CTRL_R + CTRL_C, "axb"),
        (UP + UP + CTRL_R + "of" + CTRL_R + CTRL_C, "of twox"),
        (CTRL_R + "of" + CTRL_R + CTRL_R + CTRL_G, "x"),
    ],
)
def test_ctrl_c_ends_a_search_and_gives_back_the_line(keys: PipeInput, typed: str, message: str) -> None:
    history = History(None)
    for entry in ("of one", "of two", "first of"):
        history.append(entry)
    keys.send_text(typed + "x" + ENTER + ENTER)  # the second ends the reading where the search goes on
    assert editor(keys, history).read() == message


@pytest.mark.parametrize("typed", [CTRL_D, CTRL_C + CTRL_C, "x" + CTRL_C + CTRL_C + CTRL_C])
def test_ctrl_d_or_ctrl_c_twice_with_nothing_typed_leaves(keys: PipeInput, typed: str) -> None:
    keys.send_text(typed)
    with pytest.raises(EOFError):
        editor(keys).read()


def test_the_history_comes_back_in_another_run_and_is_searched(keys: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "data" / "history.jsonl"
    keys.send_text("first of all" + ENTER + "two" + ALT_ENTER + "lines" + ENTER + " secret" + ENTER)
    first = editor(keys, History(path))
    assert [first.read() for _ in range(3)] == ["first of all", "two\nlines", " secret"]
    second = editor(keys, History(path))
    keys.send_text(UP + ENTER)
    assert second.read() == "two\nlines"
    keys.send_text(CTRL_R + "fir" + ENTER + ENTER)
    assert second.read() == "first of all"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_edited_message_begins_as_it_was_and_may_be_given_up(keys: PipeInput) -> None:
    keys.send_text(" there" + ENTER + CTRL_C)
    reader = editor(keys)
    assert reader.edit("hello") == "hello there"
    assert reader.edit("hello") is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [("y" + ENTER, True), ("YES" + ENTER, True), (ENTER, False), ("n" + ENTER, False), (CTRL_C, False)],
)
def test_only_a_yes_is_a_yes(keys: PipeInput, typed: str, said: bool) -> None:
    keys.send_text(typed)
    assert editor(keys).confirm("Really?") is said


def test_a_question_is_not_answered_by_what_was_typed_before_it_was_seen(keys: PipeInput) -> None:
    reader = editor(keys)
    keys.send_text("hello" + ENTER + "session" + ENTER)
    assert reader.read() == "hello"
    threading.Timer(0.05, lambda: keys.send_text("no\nreally" + ENTER + CTRL_C)).start()
    assert reader.ask("Run it?") == "no\nreally"
    keys.send_text(CTRL_C)
    assert reader.ask("Run it?") is None


def test_tab_writes_what_all_candidates_have_in_common_at_once(keys: PipeInput) -> None:
    names = ["/export", "/exit", "/regenerate"]

    def complete(text: str) -> list[Candidate]:
        return [Candidate(name, len(text), name) for name in names if name.startswith(text)]

    reader = LineEditor(History(None), complete, input=keys, output=DummyOutput())
    keys.send_text("/re\t" + ENTER + "/e\t" + ENTER + "hello\t" + ENTER)
    assert [reader.read() for _ in range(3)] == ["/regenerate", "/ex", "hello"]
