"""The live region: the last rows of the terminal, redrawn as they change, below lines printed for good.

Written so that nothing flickers and nothing that is printed is touched again: one write for each change, from the
first row that differs, inside a synchronized update (terminals that do not know it ignore it). Rows that may change
are never wrapped by the terminal, so that their number is known whatever it thinks of the width of an emoji.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .wrap import clusters, fold

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

BEGIN, END = "\x1b[?2026h\x1b[?25l", "\x1b[?25h\x1b[?2026l"
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"
# Of the row the end alone, then all below from the next on: erasing from the first row on would clear the screen, and
# some terminals keep a copy of a cleared screen in the scrollback.
ERASE_BELOW = "\x1b[K\x1b7\x1b[B\x1b[J\x1b8"


@dataclass(frozen=True)
class _Row:
    """A row as it was written, and its width in cells."""

    text: str
    cells: int


class LiveRegion:
    """Rows at the end of a terminal's text. Between updates the cursor stands at the end of the last of them.

    The cursor is hidden during a write alone, and no mode of the terminal outlives it.
    """

    def __init__(self, console: Console, *, reflows: bool | None = None) -> None:
        self.console = console
        self._reflows = does_reflow(os.environ) if reflows is None else reflows
        self._rows: list[_Row] = []
        self._size = console.size

    def update(self, final: Sequence[Text], live: Sequence[Text]) -> None:
        """Print `final` above the region for good, and show `live`, its last rows if they are too many, in it.

        Lines of `final` may be wider than the terminal, which then folds them.
        """
        columns, height = size = self.console.size
        folded = [row for line in live for row in fold(line, columns)]
        printed, shown = self._encoded(final), self._encoded(folded[-max(1, height - 1) :])
        new, old = printed + shown, self._rows
        same = _unchanged(old, new, columns) if size == self._size else 0
        is_same = bool(shown) and same == len(new) == len(old)
        if shown and same == len(new):
            same -= 1  # the cursor is to be left at the end of the last row
        rows_up = self._height(columns, height) - 1 - same
        self._rows, self._size = shown, size
        ahead, below = printed[same:], shown[max(0, same - len(printed)) :]
        if not is_same and (new or old):
            self._write(_start(same, len(old), rows_up) + _text(ahead, below))

    def print(self, final: Sequence[Text]) -> None:
        """Print lines for good in place of the region, which is empty then; the cursor stands on a new line."""
        self.update(final, [])

    def restore(self) -> None:
        """Undo what an interrupted write may have left: the cursor hidden, no wrapping, an open update."""
        self._write(WRAP)

    def _height(self, columns: int, height: int) -> int:
        """How many rows of the screen the region takes now, after the terminal's size may have changed."""
        if columns < self._size[0] and self._reflows:
            return min(height, sum(max(1, -(-row.cells // columns)) for row in self._rows))
        return min(height, len(self._rows))

    def _encoded(self, lines: Sequence[Text]) -> list[_Row]:
        with self.console.capture() as capture:
            for line in lines:
                self.console.print(line, soft_wrap=True)
        texts = capture.get().split("\n")[:-1]
        cells = [sum(cells for _, _, cells in clusters(line.plain)) for line in lines]
        return [_Row(text, width) for text, width in zip(texts, cells, strict=True)]

    def _write(self, text: str) -> None:
        encoding = self.console.encoding
        out = self.console.file
        out.write(f"{BEGIN}{text}{END}".encode(encoding, "replace").decode(encoding))
        out.flush()


class PlainRegion:
    """The same for a file, a pipe or a dumb terminal: text as it comes, without escapes; nothing is drawn again."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._partial = ""

    def update(self, final: Sequence[Text], live: Sequence[Text]) -> None:
        """Print lines, and `live` as the beginning of the next ones, which is only ever added to."""
        text = "".join(line.plain + "\n" for line in final) + "\n".join(line.plain for line in live)
        self.console.file.write(text.removeprefix(self._partial))
        self.console.file.flush()
        self._partial = "\n".join(line.plain for line in live)

    def print(self, final: Sequence[Text]) -> None:
        """Print whole lines."""
        self.update(final, [])

    def restore(self) -> None:
        """There is nothing to undo."""


def is_live(console: Console) -> bool:
    """Whether what is on the screen can be drawn again: a terminal that knows escape sequences."""
    return console.is_terminal and not console.is_dumb_terminal and not console.legacy_windows


def region_of(console: Console) -> LiveRegion | PlainRegion:
    """The region at the end of what a console has printed."""
    return LiveRegion(console) if is_live(console) else PlainRegion(console)


def does_reflow(environ: Mapping[str, str]) -> bool:
    """Whether the terminal wraps its rows anew when it becomes narrower, as nearly all do; the others cut them."""
    term = environ.get("TERM", "")
    return not (
        "XTERM_VERSION" in environ
        or term.startswith(("linux", "rxvt", "vt"))
        or (term.startswith("screen") and "TMUX" not in environ)
    )


def _unchanged(old: Sequence[_Row], new: Sequence[_Row], columns: int) -> int:
    """How many rows stay as they are. What the terminal has cut or would fold is written anew."""
    pairs = enumerate(zip(old, new, strict=False))
    return next((i for i, (a, b) in pairs if a != b or b.cells > columns), min(len(old), len(new)))


def _start(same: int, drawn: int, rows_up: int) -> str:
    """From the end of the last of the rows that are drawn to the start of the first that is written."""
    if drawn == 0:
        return ""
    if same == drawn:
        return "\r\n"
    return "\r" + (f"\x1b[{rows_up}A" if rows_up > 0 else "") + ERASE_BELOW


def _text(final: Sequence[_Row], live: Sequence[_Row]) -> str:
    """Rows as they are written: each that stays with a new line after it, the others with one between them."""
    return "".join(row.text + "\r\n" for row in final) + (
        NO_WRAP + "\r\n".join(row.text for row in live) + WRAP if live else ""
    )
