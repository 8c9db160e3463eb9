"""Resizes while an answer is drawn leave no garbage."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.chat.screen.live_region import LiveRegion, does_reflow
from helpers.answers import PARAGRAPH, display, whole
from helpers.screens import Screen


@pytest.mark.parametrize("reflows", [False, True])
@pytest.mark.parametrize("size", [(30, 24), (70, 24), (45, 12), (20, 30), (50, 14)])
def test_a_resize_in_the_middle_leaves_no_garbage(reflows: bool, size: tuple[int, int]) -> None:
    screen = Screen(50, 24, reflows=reflows)
    text = PARAGRAPH.replace("中文", "xx").replace("日本語", "yyy")
    with display(screen) as answer:
        answer._region = LiveRegion(screen.console, reflows=reflows)
        answer.add("One.\n\n" + text[:200])
        answer.refresh()
        screen.resize(*size)
        answer.refresh()
        answer.add(text[200:])
        answer.refresh()
        assert screen.is_at_rest
    assert screen.rows == whole("One.\n\n" + text, *size)


@settings(deadline=None, max_examples=15)
@given(
    steps=st.lists(st.tuples(st.integers(1, 12), st.integers(9, 70)), min_size=1, max_size=10),
    marks=st.lists(st.sampled_from(["", "- ", "> ", "# ", "1. "]), min_size=120, max_size=120),
    breaks=st.lists(st.sampled_from([" ", " ", " ", "\n", "\n\n"]), min_size=120, max_size=120),
)
def test_after_any_resizes_each_word_stands_there_once(
    steps: list[tuple[int, int]], marks: list[str], breaks: list[str]
) -> None:
    screen = Screen(40, 400, reflows=True)
    shown: list[str] = []
    with display(screen) as answer:
        answer._region = LiveRegion(screen.console, reflows=True)
        for count, width in steps:
            for _ in range(count):
                index = len(shown)
                shown.append(f"w{index}x")
                mark = marks[index] if index == 0 or breaks[index - 1] != " " else ""
                answer.add(mark + shown[-1] + breaks[index])
            answer.refresh()
            screen.resize(width, 400)
            answer.refresh()
    assert re.findall(r"w\d+x", re.sub(r"[\s•│]", "", "".join(screen.rows))) == shown


@pytest.mark.parametrize(
    ("environ", "reflows"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "XTERM_VERSION": "XTerm(390)"}, False),
        ({"TERM": "linux"}, False),
        ({"TERM": "screen-256color"}, False),
        ({"TERM": "screen-256color", "TMUX": "/tmp/tmux"}, True),
    ],
)
def test_terminals_that_cut_their_rows_are_known(environ: dict[str, str], reflows: bool) -> None:
    assert does_reflow(environ) is reflows
