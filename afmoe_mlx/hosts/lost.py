"""What is done when a host is lost while the main thread may be blocked in MLX, which nothing but the end ends."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYetError
from contextlib import suppress
from typing import Any

from ..interrupts import begun

# Seconds after which what waits for another host is taken to wait for good.
BLOCKED = 2.0


class EndProcess:
    """Ends the process with a line on stderr, the terminal as it was when this was made."""

    def __init__(self) -> None:
        self._modes: list[Any] | None = None
        with suppress(Exception):  # stdin is no terminal, or there is none on this system
            import termios

            self._modes = termios.tcgetattr(0)

    def __call__(self, line: str) -> None:
        # at any rate: whoever reads stderr may have stopped doing so
        threading.Timer(BLOCKED, os._exit, (1,)).start()
        if self._modes is not None:
            import termios

            with suppress(Exception):
                termios.tcsetattr(0, termios.TCSANOW, self._modes)
        with suppress(Exception):
            # a line of its own, the cursor shown, whatever was being drawn
            sys.stderr.write(f"\x1b[?25h\r\nerror: {line}\n" if sys.stderr.isatty() else f"error: {line}\n")
            sys.stderr.flush()
        os._exit(1)


def hush_native() -> None:
    """Keep what native code writes to stderr off it: MLX tells of a lost host there, socket by socket.

    Python's own stderr stays what it is.
    """
    if sys.stderr is None or sys.stderr.fileno() != 2:
        return  # done already, or not a stream of the system's
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    sys.stderr = open(kept, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: SIM115


class EndIfBlocked:
    """The same where something waits for another host; else the next call raises the line, and the program goes on.

    wait: waits for what is on its way.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait, self._end = wait, EndProcess()

    def __call__(self, line: str) -> None:
        try:
            begun(self._wait).result(BLOCKED)
        except NotYetError:
            self._end(line)
        except Exception:
            return  # it ended, with an error that its caller sees
