"""Writing to a terminal: text of models and files is made printable and never drives it."""

import json
import math
import os
import re
import sys
from typing import Any, TextIO

from .errors import InputError

# Bytes of stdin that are read: more than the contexts of these models take, whatever the text.
MOST_STDIN = 8 << 20

# C0 but newline and tab, DEL, C1, the marks that reorder what is shown, and halves of characters, which no stream takes
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with control characters shown as escapes, as in \\x1b, instead of obeyed."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_terminal(*streams: TextIO | None) -> bool:
    """Whether all of them are there, and terminals."""
    return all(stream is not None and stream.isatty() for stream in streams)


def write(text: str, stream: TextIO | None = None) -> None:
    """Write at once to a stream, stdout by default; to a terminal only what is printable."""
    stream = stream or sys.stdout
    if stream is None:
        raise InputError("stdout is closed: nowhere to write the answer")
    stream.write(printable(text) if stream.isatty() else text)
    stream.flush()


def write_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON in ASCII, which is JSON in every encoding and on every terminal.

    A number that JSON has not, infinite or none, is null.
    """
    write(json.dumps(_finite(value), indent=indent, allow_nan=False).replace("\x7f", "\\u007f") + "\n")


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def read_stdin(most: int = MOST_STDIN) -> str:
    """All of stdin, without a byte-order mark; InputError if there is none, it is not UTF-8 or has more bytes."""
    if sys.stdin is None:
        raise InputError("stdin is closed: expected text on it")
    content = sys.stdin.buffer.read(most + 1)
    if len(content) > most:
        raise InputError(f"stdin has more than {size(most)}: expected a text that fits a model's context")
    try:
        return content.decode("utf-8-sig")
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
