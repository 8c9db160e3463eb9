"""The keyboard while an answer is shown."""

import sys
import termios
from collections.abc import Generator
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
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(file, termios.TCSANOW, before)
