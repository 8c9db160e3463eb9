"""Colours of code that comes line by line: those of the whole, and never another text."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from afmoe_mlx.chat.screen.highlight import CONTEXT, CodeHighlighter

CONSOLE = Console(file=io.StringIO())
PYTHON = 'def f(x):\n    """A string of\n    two lines."""\n    return f"{x}" + \'y\'  # why\n\n'
LANGUAGES = [
    "python",
    "js",
    "c",
    "html",
    "php",
    "bash",
    "json",
    "yaml",
    "diff",
    "markdown",
    "",
    "no-such-language",
    "\x1b[",
]

code_lines = st.lists(st.text("ab \"'`/*#<>{}()$=:-\\\t1", max_size=20), min_size=1, max_size=30)


@settings(deadline=None, max_examples=40)
@given(lines=code_lines, language=st.sampled_from(LANGUAGES))
def test_the_text_is_never_changed(lines: list[str], language: str) -> None:
    highlighter = CodeHighlighter(language)
    shown = []
    for line in lines:
        shown += highlighter.add([line])
        highlighter.forget()
    assert [text.plain for text in shown] == [line.expandtabs(4) for line in lines]


def test_lines_that_come_one_by_one_have_the_colours_of_the_whole() -> None:
    lines = (PYTHON * 40).split("\n")
    highlighter = CodeHighlighter("python")
    one_by_one = []
    for line in lines:
        one_by_one += highlighter.add([line])
        highlighter.forget()
    whole = CodeHighlighter("python").add(lines)
    # a string that is open yet has its colour already
    assert list(map(colours, one_by_one)) == list(map(colours, whole))
    assert len({colour for text in whole for _, colour in colours(text)}) > 3


def colours(text: Text) -> list[tuple[str, str]]:
    styles = [str(text.get_style_at_offset(CONSOLE, i)) for i in range(len(text))]
    return [(character, style) for character, style in zip(text.plain, styles, strict=True) if character != " "]


def test_what_is_read_again_does_not_grow() -> None:
    highlighter = CodeHighlighter("python")
    for _ in range(100):
        highlighter.add(PYTHON.split("\n"))
        highlighter.forget()
        assert len(highlighter._context) <= 6 * CONTEXT


@pytest.mark.parametrize("line", ["x" * 100_000, "(" * 5000])
def test_a_line_of_data_is_not_read_as_code(line: str) -> None:
    (text,) = CodeHighlighter("python").add([line])
    assert text.plain == line
    assert not text.spans
