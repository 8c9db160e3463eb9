"""Syntax highlighting of code that comes line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from pygments.lexer import Lexer

TAB = 4
# So many lines before the new ones are read again, so that what began in them (a string, a comment) is known.
CONTEXT, MOST_CONTEXT = 16, 200
LONGEST_LINE = 2000  # beyond it a line is data, not code, and some lexers take seconds for it
THEME = "ansi_dark"  # the terminal's own sixteen colours, on its own background

Tokens = list[tuple[Any, str]]


class CodeHighlighter:
    """Colours the lines of one block of code. If `forget` is called, what a line costs does not grow with the block.

    The text of the lines is never changed but for tabs, which become spaces. An unknown language has no colours.
    """

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language)
        self._context: list[str] = []

    def add(self, lines: Sequence[str]) -> list[Text]:
        """The next lines, none of which contains a line break."""
        if not lines or self._lexer is None or any(len(line) > LONGEST_LINE for line in lines):
            self._context = []
            return [_plain(line) for line in lines]
        known = [*self._context, *lines]
        tokens = _tokens(self._lexer, known)
        if tokens is None:
            return [_plain(line) for line in lines]
        new = tokens[len(self._context) :]
        self._context = known
        return [_coloured(line) for line in new]

    def forget(self) -> None:
        """Keep only the last few lines to read again, from a line on where reading may begin: it gives the same."""
        from pygments.token import Comment, String

        known = self._context
        tokens = _tokens(self._lexer, known) if self._lexer is not None and len(known) > 2 * CONTEXT else None
        if tokens is None or self._lexer is None:
            return
        starts = range(len(known) - CONTEXT, 0, -1)
        inside = (String, Comment)
        start = next(
            (i for i in starts if tokens[i] and not any(tokens[i][0][0] in kind for kind in inside)), starts[0]
        )
        if len(known) > MOST_CONTEXT or _tokens(self._lexer, known[start:]) == tokens[start:]:
            self._context = known[start:]


def _lexer(language: str) -> Lexer | None:
    """The lexer of a language by its name on a fence; None if Pygments itself has none. Plugins are not looked for."""
    from pygments.lexers import get_all_lexers, get_lexer_by_name

    name = language.lower()
    if name == "text" or not any(name in aliases for _, aliases, _, _ in get_all_lexers(plugins=False)):
        return None
    return get_lexer_by_name(name, stripnl=False, ensurenl=False)


def _tokens(lexer: Lexer, lines: list[str]) -> list[Tokens] | None:
    """The tokens of each line; None if the lexer changes the text."""
    source = "\n".join(lines) + "\n"
    found: list[Tokens] = [[]]
    seen = 0
    for kind, value in lexer.get_tokens(source):
        if not source.startswith(value, seen):
            return None
        seen += len(value)
        for index, part in enumerate(value.split("\n")):
            if index:
                found.append([])
            if part:
                found[-1].append((kind, part))
    return found[:-1] if seen == len(source) else None


def _coloured(tokens: Tokens) -> Text:
    from rich.syntax import Syntax

    theme = Syntax.get_theme(THEME)
    text = Text()
    for kind, value in tokens:
        text.append(value, theme.get_style_for_token(kind))
    text.expand_tabs(TAB)
    return text


def _plain(line: str) -> Text:
    return Text(line.expandtabs(TAB))
