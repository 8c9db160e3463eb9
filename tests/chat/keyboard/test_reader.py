"""Plain lines where there can be no line editor."""

import os
import pty
import select
import sys

import pytest

from afmoe_mlx.chat.app import make_reader
from afmoe_mlx.chat.keyboard.history import History
from afmoe_mlx.chat.keyboard.reader import PlainReader
from helpers.keys import lines


def test_a_dumb_terminal_gets_plain_lines_and_ctrl_c_twice_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_reader(History(None), lambda text: ()), PlainReader)
    assert PlainReader(lines(KeyboardInterrupt, "hello")).read() == "hello"
    with pytest.raises(EOFError):
        PlainReader(lines(KeyboardInterrupt, KeyboardInterrupt)).read()
    assert PlainReader(lines("yes")).confirm("Really?")
    assert not PlainReader(lines()).confirm("Really?")
    assert PlainReader(lines("once")).ask("Run it?") == "once"
    assert PlainReader(lines(KeyboardInterrupt)).ask("Run it?") is None


def test_what_was_typed_before_a_question_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin, os.fdopen(master, "wb", buffering=0) as keys:
        monkeypatch.setattr(sys, "stdin", stdin)
        keys.write(b"session\n")
        assert select.select([slave], [], [], 10)[0]

        def typed(prompt: str) -> str:
            keys.write(b"no\n")
            return stdin.readline()

        assert PlainReader(typed).ask("Run it?") == "no\n"
