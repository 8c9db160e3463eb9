"""Writing to a terminal: text of models and files is made printable and never drives it."""

import os
import re
import sys
from typing import TextIO

from .errors import InputError

# C0 but newline and tab, DEL, C1, the marks that reorder what is shown, and halves of characters, which no stream takes
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with control characters shown as escapes, as in \\x1b, instead of obeyed."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def write(text: str, stream: TextIO | None = None) -> None:
    """Write at once to a stream, stdout by default; to a terminal only what is printable."""
    stream = stream or sys.stdout
    if stream is None:
        raise InputError("stdout is closed: nowhere to write the answer")
    stream.write(printable(text) if stream.isatty() else text)
    stream.flush()


def read_stdin() -> str:
    """All of stdin; InputError if there is none or it is not UTF-8."""
    if sys.stdin is None:
        raise InputError("stdin is closed: expected text on it")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 (byte {error.start}): convert it first, with iconv for example") from None


def note(text: str, *, dim: bool = False) -> None:
    """One line of status on stderr; dim where a terminal shows colours."""
    if sys.stderr is None:
        return
    sys.stderr.write((_dimmed(text) if dim else printable(text)) + "\n")
    sys.stderr.flush()


def aside(text: str) -> None:
    """A piece of what is not the answer itself, at once on stderr; dim where a terminal shows colours."""
    if sys.stderr is not None:
        sys.stderr.write(_dimmed(text) if sys.stderr.isatty() else text)
        sys.stderr.flush()


def _dimmed(text: str) -> str:
    text = printable(text)
    return f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else text


def size(count: int) -> str:
    """A number of bytes as people read it: 3.5 GB, 2.8 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
