"""Plain lines where there can be no line editor."""

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
