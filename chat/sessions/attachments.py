"""Text files attached to the next message."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afmoe_mlx.errors import InputError
from afmoe_mlx.terminal import printable, size

# A megabyte of text is a quarter of a million tokens or more, beyond what any of these models reads.
MAX_BYTES = 1_000_000

# How files begin that people take for text.
KINDS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xff\xfe", "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`"),
)


@dataclass(frozen=True)
class Attachment:
    """A text file attached to a message."""

    name: str
    """Its name without folders, printable."""
    text: str

    @property
    def block(self) -> str:
        """The text as it stands in a message: its name, then the text between fences longer than any in it."""
        language = re.sub(r"[^\w+#-]", "", Path(self.name).suffix)
        return f"File {self.name}:\n{fenced(self.text, language)}"


def fenced(text: str, language: str = "") -> str:
    """A text as a block of code."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    newline = "" if text.endswith("\n") or not text else "\n"
    return f"{fence}{language}\n{text}{newline}{fence}"


def with_attachments(attachments: Sequence[Attachment], text: str) -> str:
    """A message with the files before it."""
    return "\n\n".join([*(attachment.block for attachment in attachments), text])


def read_attachment(path: str, *, max_bytes: int = MAX_BYTES) -> Attachment:
    """A text file as a user names it: with `~` for home, quoted as in a shell or not at all.

    InputError for what is not there, is no file or no UTF-8 text, or has more than max_bytes. Whether the conversation
    has room for it, `Conversation.room_for` says.
    """
    found = _path(path)
    shown = _shown(str(found))
    if os.path.isdir(found):
        raise InputError(f"{shown} is a folder: name a file in it")
    if not os.path.isfile(found):
        what = "not a file that ends" if os.path.exists(found) else "there is no such file"
        raise InputError(f"{shown}: {what}: expected the path of a text file")
    try:
        with found.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror or error}") from None
    if len(content) > max_bytes:
        raise InputError(f"{shown} has more than {size(max_bytes)}: attach a smaller file, or a part of it")
    return Attachment(_shown(found.name), _text(content, shown))


def _path(path: str) -> Path:
    """What stands after /file, as it is if that is there, else without a shell's quotes and backslashes."""
    found = Path(os.path.expanduser(path))
    if not os.path.exists(found):
        try:
            words = shlex.split(path)
        except ValueError:  # a quote that is not closed
            words = []
        if len(words) == 1:
            return Path(os.path.expanduser(words[0]))
    return found


def _shown(name: str) -> str:
    return printable(name).replace("\n", "\\n")


def _text(content: bytes, shown: str) -> str:
    kind = next((kind for start, kind in KINDS if content.startswith(start)), None)
    if kind is not None:
        raise InputError(f"{shown} is {kind}: expected a text file")
    if b"\0" in content:
        raise InputError(f"{shown} is a binary file: expected a text file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "convert it with `iconv -f LATIN1 -t UTF-8`, for example"
        raise InputError(f"{shown} is not UTF-8 (byte {error.start}), or no text: {hint}") from None
    return text.replace("\r\n", "\n")
