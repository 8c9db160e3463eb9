"""A model's calls of tools and their results, as blocks of lines; made printable here."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from afmoe_mlx.terminal import printable

from .sections import DIM, TAB
from .wrap import wrap

RESULT_ROWS = 6  # of a result that is folded
INDENT = "  "
HEAD = Style(bold=True)
ERROR = Style(color="red")


def call_lines(name: str, arguments: str, width: int, *, server: str = "", error: str | None = None) -> list[Text]:
    """A call: its name and server, then all of its arguments, as they are asked about.

    arguments: as the model wrote them, JSON. error: what is wrong with them.
    """
    head = Text.assemble("→ ", (printable(name), HEAD), (f" · {printable(server)}" if server else "", DIM))
    words = [] if error is None else _indented([f"malformed: {error}"], width, ERROR)
    return [*wrap(head, width), *_arguments(arguments, width), *words]


def result_lines(text: str, width: int, *, is_error: bool = False, rows: int | None = RESULT_ROWS) -> list[Text]:
    """A result, of which at most so many rows are shown, and how many lines are not; None: all of it."""
    style = ERROR if is_error else DIM
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n") if text.strip() else ["(nothing)"]
    if rows is None:
        return _indented(lines, width, style)
    shown: list[Text] = []
    for number, line in enumerate(lines):
        more = _indented([line[: width * (rows + 1)]], width, style)
        if len(shown) + len(more) > rows:
            left = len(lines) - number
            word = Text(f"{INDENT}… {left:,} more line{'' if left == 1 else 's'} · /output", DIM)
            return [*(shown + more)[:rows], *wrap(word, width)]
        shown += more
    return shown


def _arguments(text: str, width: int) -> list[Text]:
    """A line for each argument, and those of a text of several lines below its name; what is no object as it is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return _indented(text.split("\n"), width)
    lines = []
    for name, value in found.items():
        if isinstance(value, str) and "\n" in value:
            lines += [*_indented([f"{name}:"], width), *_indented(value.split("\n"), width, indent=2 * INDENT)]
        else:
            lines += _indented([f"{name}: {json.dumps(value, ensure_ascii=False)}"], width)
    return lines


def _indented(lines: Sequence[str], width: int, style: Style | None = None, *, indent: str = INDENT) -> list[Text]:
    texts = [Text(printable(line).expandtabs(TAB), style or Style()) for line in lines]
    rows = [row for text in texts for row in wrap(text, max(1, width - len(indent)))]
    return [Text.assemble(indent, row) for row in rows]
