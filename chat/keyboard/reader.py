"""`Reader`, the source of a chat's lines, and `PlainReader` where there can be no line editor."""

import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

PROMPT = "> "
LEAVE_WORD = "Ctrl-C again leaves, and so does Ctrl-D."


class Reader(Protocol):
    """A source of lines, typed or scripted."""

    def read(self) -> str:
        """The next message or command; EOFError when the user leaves."""

    def edit(self, text: str) -> str | None:
        """`text` as the user has changed it; None if they gave it up."""

    def confirm(self, question: str) -> bool:
        """Whether the user says yes; Ctrl-C, Ctrl-D and a bare Enter say no."""

    def ask(self, question: str) -> str | None:
        """What is typed, of one line or more, once the question is seen: not before; None if the user gives it up."""


class PlainReader:
    """Reads whole lines, for dumb terminals and tests; nothing is completed or remembered.

    ask: shows a prompt and reads a line, as `input` does.
    """

    def __init__(self, ask: Callable[[str], str] | None = None) -> None:
        self._ask = ask or _ask

    def read(self) -> str:
        was_interrupted = False
        while True:
            try:
                return self._ask(PROMPT)
            except KeyboardInterrupt:
                if was_interrupted:
                    raise EOFError from None
                was_interrupted = True
                sys.stderr.write(f"\n{LEAVE_WORD}\n")

    def edit(self, text: str) -> str | None:
        try:
            return self._ask("Instead of the last message: ")
        except (KeyboardInterrupt, EOFError):
            sys.stderr.write("\n")
            return None

    def confirm(self, question: str) -> bool:
        try:
            return is_yes(self._ask(f"{question} [y/N] "))
        except (KeyboardInterrupt, EOFError):
            sys.stderr.write("\n")
            return False

    def ask(self, question: str) -> str | None:
        forget_typed()
        try:
            return self._ask(f"{question} ")
        except (KeyboardInterrupt, EOFError):
            sys.stderr.write("\n")
            return None


def forget_typed() -> None:
    """Drop what was typed on the terminal and has not been read: it was not meant for what is asked now."""
    with suppress(AttributeError, OSError, ValueError, termios.error):
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def is_yes(text: str) -> bool:
    return text.strip().casefold() in ("y", "yes")


def _ask(prompt: str) -> str:
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
