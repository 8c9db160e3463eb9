"""Keyboard echo, turned off while an answer streams."""

import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress


@contextmanager
def silent_keyboard() -> Generator[None, None, None]:
    """What is typed is kept for the next prompt but not shown, so that it does not stand in the answer; Ctrl-C works.

    Does nothing where stdin is no terminal.
    """
    try:
        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
    except (AttributeError, OSError, ValueError, termios.error):
        yield
        return
    silent = termios.tcgetattr(file)
    # as the line editor reads: Enter stays what it is, Ctrl-D ends nothing
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(file, termios.TCSANOW, silent)

    def again() -> None:
        if os.tcgetpgrp(file) == os.getpgrp():  # in the foreground: nobody else may change a terminal
            termios.tcsetattr(file, termios.TCSANOW, silent)

    try:
        with _when_continued(again):
            yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(file, termios.TCSANOW, before)


@contextmanager
def _when_continued(do: Callable[[], None]) -> Generator[None, None, None]:
    """After Ctrl-Z and `fg`: the shell has set the terminal as it likes it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCONT, lambda *_: do())
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)
