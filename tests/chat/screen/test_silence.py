"""What is typed during an answer is not echoed, and the keyboard always comes back."""

import os
import pty
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from afmoe_mlx.chat.screen.silence import silent_keyboard
from helpers.answers import display
from helpers.screens import Screen


def test_what_is_typed_meanwhile_is_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin, os.fdopen(master):
        monkeypatch.setattr(sys, "stdin", stdin)
        before = termios.tcgetattr(slave)
        with silent_keyboard():
            flags = termios.tcgetattr(slave)[3]
            assert not flags & termios.ECHO
            assert flags & termios.ISIG
        assert termios.tcgetattr(slave) == before


def test_a_terminal_that_is_closed_meanwhile_hides_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)

        def hang_up() -> None:
            with silent_keyboard():
                os.close(master)
                raise SystemExit(129)

        with pytest.raises(SystemExit):
            hang_up()


def test_the_keyboard_comes_back_though_nothing_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin, os.fdopen(master):
        monkeypatch.setattr(sys, "stdin", stdin)
        before = termios.tcgetattr(slave)
        screen = Screen()

        def fail(*_: object) -> None:
            raise OSError("gone")

        answer = display(screen)
        monkeypatch.setattr(answer._region, "_write", fail)
        answer.add("text")
        with pytest.raises(OSError, match="gone"), answer:
            raise KeyboardInterrupt
        assert termios.tcgetattr(slave) == before


def test_an_interrupt_while_stopped_leaves_the_display_free_to_draw() -> None:
    screen = Screen()
    with display(screen) as answer:
        answer.add("half a paragraph")
        answer.refresh()
        with suppress(KeyboardInterrupt), answer._withdrawn():
            assert screen.rows == []
            raise KeyboardInterrupt
        with ThreadPoolExecutor(1) as other:
            other.submit(answer.refresh).result(timeout=10)
        assert screen.rows == ["half a paragraph"]
