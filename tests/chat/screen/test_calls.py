"""Calls and results as blocks: all of a call is seen, a result is folded, and neither is ever wider than the screen."""

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from afmoe_mlx.chat.screen.calls import RESULT_ROWS, call_lines, result_lines
from afmoe_mlx.terminal import printable
from helpers.markdown_texts import HOSTILE

texts = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(HOSTILE)
widths = st.integers(8, 60)


def shown(lines: list[Text], width: int) -> str:
    text = "\n".join(line.plain for line in lines)
    assert printable(text) == text
    assert max(cell_len(line.plain) for line in lines) <= width
    return text


@settings(max_examples=60, deadline=None)
@given(name=texts, value=texts, width=widths)
def test_all_of_a_call_is_shown(name: str, value: str, width: int) -> None:
    lines = call_lines("f", json.dumps({name: value, "lines": f"{value}\n{value}"}), width)
    written = "".join(shown(lines, width).split())
    for text in (name, value):
        assert "".join(printable(text).split()) in written


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(texts, max_size=12), width=widths)
@example(texts=[" 000000"], width=8)  # a word that only its indentation moves over the edge
@example(texts=[" " * 20 + "x"], width=8)
def test_a_result_is_folded_to_its_first_rows_and_whole_when_it_is_asked_for(texts: list[str], width: int) -> None:
    text = "\n".join(texts)
    whole, folded = (result_lines(text, width, rows=rows) for rows in (None, RESULT_ROWS))
    shown(whole, width)
    if len(whole) <= RESULT_ROWS:
        assert folded == whole
    else:
        assert folded[:RESULT_ROWS] == whole[:RESULT_ROWS]
        assert " more line" in " ".join(shown(folded, width).split()[-7:])


def test_what_is_no_object_is_shown_as_it_was_written_with_what_is_wrong() -> None:
    lines = call_lines("f", '{"a": 1,,}\x1b[2J', 80, error="expected a name")
    assert [line.plain for line in lines] == ["→ f", r'  {"a": 1,,}\x1b[2J', "  malformed: expected a name"]
    assert [line.plain for line in result_lines(" \n", 80)] == ["  (nothing)"]
