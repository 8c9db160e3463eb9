"""Markdown rendered to lines of Rich's Text, wrapped to the terminal.

HTML is shown as text, a link with its target, and code as it is, so that it can be copied: flush left, long lines left
to the terminal to fold. Nothing in the text drives the terminal; entities are decoded first, so it is made sure here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from afmoe_mlx.terminal import printable

from .highlight import CodeHighlighter
from .markdown_pieces import Piece, document
from .wrap import wrap

if TYPE_CHECKING:
    from markdown_it.tree import SyntaxTreeNode

PLAIN = Style()
DIM = Style(dim=True)
STYLES = {
    "em": Style(italic=True),
    "strong": Style(bold=True),
    "s": Style(strike=True),
    "code_inline": Style(color="cyan", bold=True),  # without colours it is told by the weight
    "link": Style(underline=True),
    "h1": Style(bold=True, underline=True),
    "h2": Style(bold=True),
    "h3": Style(bold=True, italic=True),
}
NARROWEST = 8  # cells for text in nested lists and quotes, however narrow the terminal
RULE = 40
BULLET = "• "


def markdown_lines(text: str, console: Console, width: int) -> list[Text]:
    """A whole Markdown text as lines of at most `width` cells, but for code."""
    return MarkdownLines(console).add(document(printable(text)), width)


class MarkdownLines:
    """Makes lines of the pieces of a Markdown text, one after the other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = False
        self._code: CodeHighlighter | None = None

    def add(self, pieces: Iterable[Piece], width: int) -> list[Text]:
        """The lines of the next pieces; those wider than `width` cells are code."""
        lines = [line for piece in pieces for line in self._piece(piece, width)]
        if self._code is not None:
            self._code.forget()
        return lines

    def preview(self, pieces: Iterable[Piece], width: int) -> list[Text]:
        """The lines of what may come next, and change."""
        other = copy(self)
        other._code = copy(self._code)
        return [line for piece in pieces for line in other._piece(piece, width)]

    def _piece(self, piece: Piece, width: int) -> Iterator[Text]:
        if piece.spaced and self._begun:
            yield Text()
        self._begun = True
        if piece.kind == "block":
            inner = Blocks(self._console, max(NARROWEST, width - len(piece.marker)))
            yield from _marked(inner.of_tokens(piece.tokens), piece.marker)
            return
        if piece.kind == "code_start":
            self._code = CodeHighlighter(piece.text)
            lines = [_rule(width - len(piece.marker), printable(piece.text))]
        elif piece.kind == "code_end":
            lines = [_rule(width - len(piece.marker))]
        else:
            assert self._code is not None
            lines = self._code.add(piece.text.removesuffix("\n").split("\n"))
        yield from _marked(lines, piece.marker)


class Blocks:
    """Makes lines of at most `width` cells of parsed blocks, but for code."""

    def __init__(self, console: Console, width: int) -> None:
        self.console, self.width = console, width

    def of_tokens(self, tokens: Sequence[Any]) -> list[Text]:
        from markdown_it.tree import SyntaxTreeNode

        return self.of(SyntaxTreeNode(tokens).children)

    def of(self, nodes: Iterable[SyntaxTreeNode], *, tight: bool = False) -> list[Text]:
        lines: list[Text] = []
        for node in nodes:
            if lines and not tight:
                lines.append(Text())
            lines += self._block(node)
        return lines

    def _block(self, node: SyntaxTreeNode) -> list[Text]:
        if node.type in {"paragraph", "heading"}:
            style = STYLES.get(node.tag, STYLES["h3"]) if node.type == "heading" else PLAIN
            return wrap(inline(node.children, style), self.width)
        if node.type in {"fence", "code_block"}:
            return self._code(node)
        if node.type == "blockquote":
            return [Text.assemble(("│ " if line else "│", DIM), line) for line in self._narrower(2).of(node.children)]
        if node.type in {"bullet_list", "ordered_list"}:
            return self._list(node)
        if node.type == "table":
            return self._table(node)
        return [_rule(self.width)] if node.type == "hr" else wrap(_text(node.content), self.width)

    def _narrower(self, cells: int) -> Blocks:
        return Blocks(self.console, max(NARROWEST, self.width - cells))

    def _code(self, node: SyntaxTreeNode) -> list[Text]:
        language = printable(node.info.strip().partition(" ")[0])
        code = node.content.removesuffix("\n")
        lines = CodeHighlighter(language).add(code.split("\n")) if node.content else []
        return [_rule(self.width, language), *lines, _rule(self.width)]

    def _list(self, node: SyntaxTreeNode) -> list[Text]:
        number = int(node.attrs.get("start", 1)) if node.type == "ordered_list" else None
        tight = all(child.hidden for item in node.children for child in item.children if child.type == "paragraph")
        lines: list[Text] = []
        for index, item in enumerate(node.children):
            marker = BULLET if number is None else f"{number + index}{item.markup} "
            if lines and not tight:
                lines.append(Text())
            lines += _marked(self._narrower(len(marker)).of(item.children, tight=tight), marker)
        return lines

    def _table(self, node: SyntaxTreeNode) -> list[Text]:
        from rich import box
        from rich.table import Table

        head, *body = [row for part in node.children for row in part.children]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, border_style=DIM)
        for cell in head.children:
            table.add_column(inline(cell.children, STYLES["strong"]), justify=_justify(cell), overflow="fold")
        for row in body:
            table.add_row(*(inline(cell.children, PLAIN) for cell in row.children))
        options = self.console.options.update(width=self.width, height=None)
        rows = self.console.render_lines(table, options, pad=False)
        lines = [Text.assemble(*((part.text, part.style or PLAIN) for part in row)) for row in rows]
        for line in lines:
            line.rstrip()
        return lines


def inline(nodes: Sequence[SyntaxTreeNode], style: Style) -> Text:
    """The text of what stands in a paragraph, a heading or a cell; a line break of the source is one here."""
    text = Text()
    for node in nodes:
        if node.type in {"softbreak", "hardbreak"}:
            text.append("\n")
        elif node.type == "link":
            text.append_text(_link(node, style))
        elif node.type == "image":
            text.append(printable(f"[image: {node.content}] ({node.attrs.get('src', '')})"), style + DIM)
        elif node.children:
            text.append_text(inline(node.children, style + STYLES.get(node.type, PLAIN)))
        else:
            text.append_text(_text(node.content, style + STYLES.get(node.type, PLAIN)))
    return text


def _link(node: SyntaxTreeNode, style: Style) -> Text:
    target = printable(str(node.attrs.get("href", "")))
    label = inline(node.children, style + STYLES["link"])
    if label.plain in {target, target.removeprefix("mailto:")}:
        return label
    return Text.assemble(label, (f" ({target})", style + DIM))


def _text(content: str, style: Style = PLAIN) -> Text:
    return Text(printable(content).replace("\t", "    "), style)


def _justify(cell: SyntaxTreeNode) -> Any:
    return str(cell.attrs.get("style", "")).removeprefix("text-align:") or "left"


def _rule(width: int, title: str = "") -> Text:
    """A line around code, or between paragraphs; short, so that a terminal made narrower seldom breaks it."""
    length = max(NARROWEST, min(RULE, width))
    begin = f"── {title[: length - 4]} " if title else ""
    return Text(begin.ljust(length, "─"), DIM)


def _marked(lines: Sequence[Text], marker: str) -> list[Text]:
    """Lines behind a list's mark, which stands before the first; the mark alone if there are none."""
    if not marker:
        return list(lines)
    margin = " " * len(marker)
    marked = [Text.assemble(margin if index else marker, line) for index, line in enumerate(lines or [Text()])]
    for line in marked:
        line.rstrip()
    return marked
