"""The real program in a real pseudo-terminal, with a screen that is looked at."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pyte

ENTER, CTRL_C, CTRL_D, CTRL_R, CTRL_U, CTRL_Z, ALT_ENTER, TAB, UP = (
    "\r",
    "\x03",
    "\x04",
    "\x12",
    "\x15",
    "\x1a",
    "\x1b\r",
    "\t",
    "\x1b[A",
)
PROMPT = "> "


class Screen(pyte.HistoryScreen):
    """pyte knows no faint text: here it is grey."""

    def select_graphic_rendition(self, *attributes: int, **more: Any) -> None:
        super().select_graphic_rendition(*(90 if attribute == 2 else attribute for attribute in attributes), **more)


class PseudoTerminal:
    """`afmoe-mlx chat` with arguments, at home in `home`. Everything waits for what it names, or fails in time.

    shell: a program and its arguments that are run instead.
    """

    def __init__(
        self,
        home: Path,
        *arguments: str,
        columns: int = 80,
        rows: int = 24,
        shell: Sequence[str] = (),
        **environ: str,
    ) -> None:
        self.screen = Screen(columns, rows, history=10_000, ratio=0.1)
        self._stream = pyte.ByteStream(self.screen)
        self.received = b""
        self.child = pexpect.spawn(
            shell[0] if shell else sys.executable,
            [*shell[1:]] if shell else ["-m", "afmoe_mlx", "chat", *arguments],
            env=environment(home) | environ,
            cwd=str(home),
            dimensions=(rows, columns),
            timeout=60,
        )
        self.child.delaybeforesend = None
        # questions that the program puts to its terminal, as to where the cursor stands, are answered
        self.screen.write_process_input = lambda data: self.child.send(data)

    def __enter__(self) -> "PseudoTerminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
            self.child.wait()  # however long that takes on a busy machine
        self.child.close()

    # --- looking

    @property
    def rows(self) -> list[str]:
        """The rows of the screen, without blanks at their ends."""
        return [row.rstrip() for row in self.screen.display]

    @property
    def scrollback(self) -> list[str]:
        """The rows that have left the screen, the first first."""
        columns = self.screen.columns
        return ["".join(row[x].data for x in range(columns)).rstrip() for row in self.screen.history.top]

    @property
    def text(self) -> str:
        """All that can be seen, scrolling back."""
        return "\n".join([*self.scrollback, *self.rows]).rstrip()

    @property
    def cursor_row(self) -> str:
        return self.rows[self.screen.cursor.y]

    @property
    def awaits_input(self) -> bool:
        """Whether the cursor stands behind an empty prompt."""
        return self.cursor_row == PROMPT.rstrip() and self.screen.cursor.x == len(PROMPT)

    # --- doing

    def read(self, seconds: float = 0.1) -> bool:
        """Show what the program has written; False once it has ended and all is read."""
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.received += data
        self._stream.feed(data)
        return True

    def wait(self, until: Callable[[], Any], what: str, timeout: float = 90) -> None:
        end = time.monotonic() + timeout
        while not until():
            assert time.monotonic() < end, f"no {what} on\n{self.text}"
            assert self.read() or until(), f"ended without {what}:\n{self.text}"

    def wait_for(self, pattern: str, times: int = 1, timeout: float = 90) -> None:
        """Until a pattern is seen so often, scrolled away or not."""
        self.wait(lambda: len(re.findall(pattern, self.text, re.MULTILINE)) >= times, repr(pattern), timeout)

    def wait_for_prompt(self) -> None:
        """Until the program awaits input."""
        self.wait(lambda: self.awaits_input, "empty prompt")

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def say(self, text: str, then: str) -> None:
        """Send a line, and wait for a new match of `then` with the prompt after it."""
        before = len(re.findall(then, self.text, re.MULTILINE))
        self.type(text + ENTER)
        self.wait_for(then, before + 1)
        self.wait_for_prompt()

    def ask(self, text: str) -> None:
        """Send a message, and wait for its answer, to the end."""
        self.say(text, r"^\d+ tokens?( ·|$)")

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def end(self, timeout: float = 90) -> int:
        """Wait for the program's end; its exit status, or minus the signal that ended it."""
        self.wait(lambda: not self.read(), "end", timeout)
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -(self.child.signalstatus or 0)


def environment(home: Path) -> dict[str, str]:
    """A user of their own, with a plain colour terminal."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm-256color",
        "LC_ALL": "C.UTF-8",
    }
