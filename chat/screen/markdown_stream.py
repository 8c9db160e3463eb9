"""Streaming Markdown: which part of the text is final while more of it comes.

A piece is final as soon as no further text can change it; the rest, from the first piece that is not, is the tail, and
the tail alone is parsed again. It knows nothing of terminals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .markdown_pieces import Item, Leaf, Piece, Resumed, indent, is_blank, leaves, make_parser

# So many of the last lines of code are not final: the end of a comment colours its beginning.
HELD_LINES = 8
# Stands for what is final of a list's item when the rest of the item is parsed alone: nothing can join a heading.
DUMMY = "# x"
# A last line that may become anything: a heading's underline, a list, a rule, a fence, a table.
UNDECIDED = re.compile(r"[-=*+#>_:|~` ]+|\d{1,9}[.)]?|(?:`{3,}|~{3,})[^`]*")


@dataclass(frozen=True)
class _Fence:
    """A block of code whose end has not come."""

    character: str
    length: int
    column: int
    container: int
    """The column where the text of the list's item around it begins, else 0."""
    item: Item | None
    margin: str

    def is_end(self, line: str) -> bool:
        mark = line.strip(" \t")
        return 0 <= indent(line) - self.container < 4 and len(mark) >= self.length and set(mark) == {self.character}

    def is_left_by(self, line: str) -> bool:
        """Whether a line ends the list's item around, and so the code."""
        return not is_blank(line) and indent(line) < self.container


class MarkdownStream:
    """Takes text as it comes and gives the pieces that became final, and a preview of the rest.

    The text is printable (`afmoe_mlx.terminal.printable`). The pieces that `advance` and `finish` give are, together,
    those of `document` for the whole text, except that the lines of one block of code may come as several pieces.
    """

    def __init__(self) -> None:
        self._parser = make_parser()
        self._tail = ""
        self._fence: _Fence | None = None
        self._resumed: Resumed | None = None

    def feed(self, text: str) -> None:
        """Take more text; it is looked at when `advance` or `preview` is called."""
        self._tail += text

    def advance(self) -> list[Piece]:
        """The pieces that became final since the last call."""
        return self._advance(HELD_LINES)

    def preview(self) -> list[Piece]:
        """The pieces of the tail as if the text ended here; what has only begun is left out or closed by a guess."""
        lines, last = self._lines()
        if self._fence is None:
            if not UNDECIDED.fullmatch(last.lstrip()):
                lines.append(_closed(last))
            return self._rest(lines)
        if last.strip() and set(last.strip()) != {self._fence.character}:
            lines.append(last)
        code = "".join(_dedented(line, self._fence.column) + "\n" for line in lines)
        return [Piece("code", text=code, marker=self._fence.margin)] if code else []

    def finish(self) -> list[Piece]:
        """The last pieces, when no more text comes."""
        if self._tail and not self._tail.endswith("\n"):
            self._tail += "\n"
        pieces = self._advance(0)
        if self._fence is not None:
            pieces.append(Piece("code_end", marker=self._fence.margin))
        else:
            pieces += self._rest(self._lines()[0])
        self._tail, self._fence, self._resumed = "", None, None
        return pieces

    def _lines(self) -> tuple[list[str], str]:
        """The tail's complete lines, and the last one, which is not."""
        *lines, last = self._tail.split("\n")
        return lines, last

    def _parsed(self, lines: list[str]) -> list[Leaf]:
        return list(leaves(self._parser.parse("\n".join([*lines, ""])), lines, self._resumed))

    def _rest(self, lines: list[str]) -> list[Piece]:
        return [piece for leaf in self._parsed(lines) for piece in leaf.pieces()]

    def _advance(self, held: int) -> list[Piece]:
        pieces: list[Piece] = []
        while True:
            in_code = self._fence is not None
            pieces += self._advance_code(held) if in_code else self._advance_blocks()
            if in_code == (self._fence is not None):
                return pieces

    def _advance_blocks(self) -> list[Piece]:
        """All but the last leaf is final, and often it is too; the tail is made to begin after what is final."""
        lines, partial = self._lines()
        found = self._parsed(lines)
        if not found:
            return []
        last = found[-1]
        if last.item is not None and last.item.opening is None:
            last = next(leaf for leaf in found if leaf.item == last.item)
        pieces = [piece for leaf in found[: found.index(last)] for piece in leaf.pieces()]
        item, is_whole = last.item, last.item is None or last.item.opening is not None
        self._resumed = None if item is None else Resumed(item, inside=not last.is_first)
        if is_whole and last.is_code:
            pieces.append(last.code_start())
            self._fence, self._resumed = _opened(last, lines[last.line]), None
            lines = lines[last.line + 1 :]
        elif is_whole and (last.is_one_line or (last.ends_at_blank_line and is_blank(lines[-1]))):
            pieces += last.pieces()
            lines = lines[-1:] if is_blank(lines[-1]) else []
            if item is not None:
                self._resumed = Resumed(item, inside=True)
                lines.insert(0, f"{item.opening}{DUMMY}")
        elif item is None:
            lines = lines[last.line :]
        else:
            head = [""] * last.spaced if last.is_first else [f"{item.opening}{DUMMY}", *[""] * last.spaced]
            lines = [*head, *lines[item.line if last.is_first else last.line :]]
        self._tail = "\n".join([*lines, partial])
        return pieces

    def _advance_code(self, held: int) -> list[Piece]:
        """Every line of code is final, but for the last few that are held back."""
        assert self._fence is not None
        fence, (lines, partial) = self._fence, self._lines()
        end = next((i for i, line in enumerate(lines) if fence.is_end(line) or fence.is_left_by(line)), None)
        count = max(0, len(lines) - held) if end is None else end
        code = "".join(_dedented(line, fence.column) + "\n" for line in lines[:count])
        pieces = [Piece("code", text=code, marker=fence.margin)] if code else []
        rest = lines[count:]
        if end is not None:
            pieces.append(Piece("code_end", marker=fence.margin))
            self._fence, item = None, fence.item
            if fence.is_end(lines[end]):
                rest = rest[1:]
                if item is not None:
                    self._resumed = Resumed(item, inside=True)
                    rest.insert(0, f"{item.opening}{DUMMY}")
            elif item is not None:
                following = None if item.number is None else item.number + 1
                self._resumed = Resumed(replace(item, number=following))
                if end and is_blank(lines[end - 1]):
                    rest.insert(0, "")
        self._tail = "\n".join([*rest, partial])
        return pieces


def _opened(leaf: Leaf, line: str) -> _Fence:
    container = len(leaf.item.opening or "") if leaf.item is not None else 0
    column = container if leaf.item is not None and leaf.is_first else indent(line)
    mark = leaf.tokens[0].markup
    return _Fence(mark[0], len(mark), column, container, leaf.item, " " * len(leaf.marker))


def _closed(line: str) -> str:
    """A line that goes on, with its open code or bold closed."""
    bare = line.rstrip("*`")
    if bare.count("`") % 2:
        return bare + "`"
    return bare.rstrip() + "**" if bare.count("**") % 2 else bare


def _dedented(line: str, columns: int) -> str:
    """A line without its first columns of space, as far as there are any; of a tab cut in two its rest as spaces."""
    column = 0
    for index, character in enumerate(line):
        if column >= columns or character not in " \t":
            return " " * (column - columns) + line[index:]
        column += 1 if character == " " else 4 - column % 4
    return " " * max(0, column - columns)
