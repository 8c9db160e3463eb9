"""Keyboard echo, turned off while an answer streams, Ctrl-Z and `fg` in the middle of it included."""

import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any


@contextmanager
def silent_keyboard(
    stopped: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Generator[None, None, None]:
    """What is typed is kept for the next prompt but not shown, so that it does not stand in the answer; Ctrl-C works.

    stopped: a context in which the process is while Ctrl-Z has stopped it. All this where stdin is a terminal.
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

    def set_terminal(mode: list[Any]) -> None:
        if os.tcgetpgrp(file) == os.getpgrp():  # in the foreground: nobody else may change a terminal
            termios.tcsetattr(file, termios.TCSANOW, mode)

    def stop() -> None:
        with stopped():
            set_terminal(before)
            _stop_here()

    try:
        # after `fg` the shell has set the terminal as it likes it
        with _handled(signal.SIGTSTP, stop), _handled(signal.SIGCONT, lambda: set_terminal(silent)):
            yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(file, termios.TCSANOW, before)


def _stop_here() -> None:
    """Stop the process as Ctrl-Z does by default; returns when it goes on."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    try:
        os.kill(os.getpid(), signal.SIGTSTP)
    finally:
        signal.signal(signal.SIGTSTP, handler)


@contextmanager
def _handled(number: int, do: Callable[[], None]) -> Generator[None, None, None]:
    """A signal handled in this block, unless it is ignored or this is no thread that signals come to."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, lambda *_: do())
    try:
        yield
    finally:
        signal.signal(number, before)
