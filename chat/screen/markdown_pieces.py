"""Markdown parsed into pieces that are rendered one by one.

A text is a row of top-level blocks, what stands in the items of its top-level lists, and lines of code. No piece acts
on another: HTML is text, and definitions of links, which act backwards, are too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

ITEM_OPENING = re.compile(r" {0,3}(?:[-+*]|\d{1,9}[.)]) {1,4}(?=\S)")


@dataclass(frozen=True)
class Piece:
    """What is shown at once. A block of code is its start, any number of lines, and its end."""

    kind: Literal["block", "code_start", "code", "code_end"]
    tokens: Sequence[Token] = ()
    """A block's; empty for an item of a list with nothing in it."""
    text: str = ""
    """Of code: the language at its start, then lines, each with its line break."""
    spaced: bool = False
    """Whether an empty line stands before it, unless it is the first of all."""
    marker: str = ""
    """What stands before its first line in a list: the item's mark, or as many spaces."""


@dataclass(frozen=True)
class Item:
    """An item of a top-level list; its number is None where items have bullets."""

    line: int
    markup: str
    number: int | None
    opening: str | None
    """Its first line up to its text; None where the item is not to be cut."""

    @property
    def marker(self) -> str:
        return "• " if self.number is None else f"{self.number}{self.markup} "

    def is_of(self, markup: str, *, numbered: bool) -> bool:
        return self.markup == markup and numbered == (self.number is not None)


@dataclass(frozen=True)
class Leaf:
    """A block without pieces inside, or a block of code, or an empty item."""

    tokens: Sequence[Token]
    line: int
    spaced: bool
    item: Item | None = None
    is_first: bool = True

    @property
    def is_code(self) -> bool:
        return bool(self.tokens) and self.tokens[0].type == "fence"

    @property
    def is_one_line(self) -> bool:
        """Whether it is complete with its first line."""
        return bool(self.tokens) and self.tokens[0].type in {"heading_open", "hr"}

    @property
    def ends_at_blank_line(self) -> bool:
        return bool(self.tokens) and self.tokens[0].type in {"paragraph_open", "table_open", "blockquote_open"}

    @property
    def marker(self) -> str:
        marker = self.item.marker if self.item is not None else ""
        return marker if self.is_first else " " * len(marker)

    def pieces(self) -> Iterator[Piece]:
        if not self.is_code:
            yield Piece("block", self.tokens, spaced=self.spaced, marker=self.marker)
            return
        yield self.code_start()
        margin = " " * len(self.marker)
        if content := self.tokens[0].content:
            yield Piece("code", text=content, marker=margin)
        yield Piece("code_end", marker=margin)

    def code_start(self) -> Piece:
        language = self.tokens[0].info.strip().partition(" ")[0]
        return Piece("code_start", text=language, spaced=self.spaced, marker=self.marker)


@dataclass(frozen=True)
class Resumed:
    """What the tail does not say of itself when it begins inside a list."""

    item: Item
    """As the tail's first item is numbered if it belongs to that list."""
    inside: bool = False
    """Whether a heading stands there for what is final of that item."""


def make_parser() -> MarkdownIt:
    """CommonMark with tables and strikethrough; HTML is text, and so are definitions of links, which act backwards."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable(["strikethrough", "table"])
    return parser.disable(["reference", "html_block", "html_inline"])


def document(text: str) -> list[Piece]:
    """The pieces of a whole Markdown text."""
    if not text.endswith("\n"):
        text += "\n"
    return [piece for leaf in leaves(make_parser().parse(text), text.split("\n"), None) for piece in leaf.pieces()]


def siblings(tokens: Sequence[Token]) -> list[list[Token]]:
    """Flat tokens, in groups that are each one block with all that is in it."""
    groups: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            groups.append([])
        groups[-1].append(token)
        depth += token.nesting
    return groups


def leaves(tokens: Sequence[Token], lines: Sequence[str], resumed: Resumed | None) -> Iterator[Leaf]:
    """The leaves of a parsed text, of its lines; resumed: where the text begins inside a list."""
    for index, block in enumerate(siblings(tokens)):
        if block[0].type in {"bullet_list_open", "ordered_list_open"}:
            yield from _list_leaves(block, lines, resumed if index == 0 else None)
        else:
            yield Leaf(block, _line(block[0]), spaced=True)


def _list_leaves(block: Sequence[Token], lines: Sequence[str], resumed: Resumed | None) -> Iterator[Leaf]:
    numbered, markup = block[0].type == "ordered_list_open", block[0].markup
    number = int(block[0].attrs.get("start", 1)) if numbered else None
    if resumed is not None and not resumed.item.is_of(markup, numbered=numbered):
        resumed = None
    if resumed is not None:
        number = resumed.item.number
    for index, tokens in enumerate(siblings(block[1:-1])):
        line = _line(tokens[0])
        opening = ITEM_OPENING.match(lines[line])
        item = Item(line, markup, None if number is None else number + index, opening and opening[0])
        children = siblings(tokens[1:-1])
        cut = resumed is not None and resumed.inside and index == 0
        spaced = (resumed is None and index == 0) or _is_blank_before(lines, line)
        if not cut:
            yield Leaf(children[0] if children else (), line, spaced, item)
        for child in children[1:]:
            at = _line(child[0])
            yield Leaf(child, at, _is_blank_before(lines, at), item, is_first=False)


def _line(token: Token) -> int:
    assert token.map is not None
    return token.map[0]


def is_blank(line: str) -> bool:
    """Whether Markdown takes a line for an empty one."""
    return not line.strip(" \t")


def _is_blank_before(lines: Sequence[str], line: int) -> bool:
    return line > 0 and is_blank(lines[line - 1])


def indent(line: str) -> int:
    """Columns before the first character that is no space; a tab reaches to the next multiple of 4."""
    column = 0
    for character in line:
        if character not in " \t":
            break
        column += 1 if character == " " else 4 - column % 4
    return column
