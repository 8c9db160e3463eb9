"""An answer on the terminal: drawn anew only where it may change, whole at the end."""

import io
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from afmoe_mlx.chat.screen.display import AnswerDisplay
from helpers.answers import PARAGRAPH, Clock, display, reader, show, whole
from helpers.markdown_texts import cuts, split, texts
from helpers.screens import OWN_SEQUENCES, Screen

LAST = SimpleNamespace(generation_tokens=12, generation_tps=40.0, cached_tokens=1024, finish_reason="stop")

sizes = st.tuples(st.integers(12, 70), st.integers(3, 20))


@settings(deadline=None, max_examples=60)
@given(text=texts, places=cuts, size=sizes)
def test_the_screen_at_the_end_is_that_of_the_whole_text_rendered_at_once(
    text: str, places: list[int], size: tuple[int, int]
) -> None:
    screen = Screen(*size)
    show(screen, split(text, places))
    assert screen.rows == whole(text, *size)
    assert screen.is_at_rest
    assert screen.cursor[1] == 0


@settings(deadline=None, max_examples=30)
@given(text=texts, places=cuts, size=sizes)
def test_rows_that_scrolled_away_are_final(text: str, places: list[int], size: tuple[int, int]) -> None:
    screen = Screen(*size)
    gone: list[list[str]] = []
    with display(screen) as answer:
        for part in split(text, places):
            answer.add(part)
            answer.refresh()
            assert screen.is_at_rest
            gone.append(screen.gone)
    everything = screen.gone + screen.visible
    for rows in gone:
        assert everything[: len(rows)] == rows


def test_a_long_block_of_code_is_seen_from_its_first_line_to_its_last() -> None:
    screen = Screen(60, 24)
    code = [f"    x[{i}] = {i}" for i in range(100)]
    with display(screen) as answer:
        answer.add("Before.\n\n1. step\n\n   ```python\n")
        for count, line in enumerate(code, 1):
            answer.add(f"   {line}\n")
            answer.refresh()
            assert [row[3:] for row in screen.rows if "x[" in row] == code[:count]
    assert [row[3:] for row in screen.rows if "x[" in row] == code


def test_lines_of_code_are_left_to_the_terminal_to_fold() -> None:
    screen = Screen(20, 10)
    line = "print('" + "0123456789" * 5 + "')"
    show(screen, ["```\n", line, "\n```\n", "end"])
    assert line in OWN_SEQUENCES.sub("", screen.written)
    assert "".join(screen.rows[1:4]) == line


def test_of_a_table_that_is_taller_than_the_screen_the_last_rows_are_seen_and_all_are_kept() -> None:
    screen = Screen(40, 10)
    with display(screen) as answer:
        answer.add("| n | square |\n|---|---|\n")
        for i in range(40):
            answer.add(f"| {i} | {i * i} |\n")
            answer.refresh()
            assert screen.gone == []
        assert screen.visible[8].split() == ["39", "1521"]
    assert [row.split() for row in screen.rows[2:]] == [[str(i), str(i * i)] for i in range(40)]


def test_nothing_is_written_while_nothing_changes() -> None:
    screen = Screen()
    with display(screen) as answer:
        answer.add("Some words")
        answer.refresh()
        before = screen.written
        answer.refresh()
        answer.add("")
        answer.refresh()
        assert screen.written == before
        answer.add(" more")
        answer.refresh()
        assert "\x1b[J" in screen.written[len(before) :]
        assert "Some words more" in screen.written[len(before) :]


def test_a_change_in_the_last_row_leaves_the_rows_above_alone() -> None:
    screen = Screen(40, 20)
    with display(screen) as answer:
        answer.add(PARAGRAPH)
        answer.refresh()
        before = len(screen.written)
        answer.add("end")
        answer.refresh()
        assert len(OWN_SEQUENCES.sub("", screen.written[before:])) <= 42


def test_what_has_only_begun_does_not_flash() -> None:
    screen = Screen()
    with display(screen) as answer:
        for part in ["Here they are:\n", "-", "-", "-"]:
            answer.add(part)
            answer.refresh()
            assert screen.rows == ["Here they are:"]
    screen = Screen()
    with display(screen) as answer:
        for part, row in [("so **bo", "so bo"), ("ld*", "so bold"), ("* `co", "so bold co"), ("de`", "so bold code")]:
            answer.add(part)
            answer.refresh()
            assert screen.rows == [row]
    screen = Screen()
    with display(screen) as answer:
        for part in ["Run:\n", "``", "`", "ba", "sh"]:
            answer.add(part)
            answer.refresh()
            assert screen.rows == ["Run:"]


def interrupted(screen: Screen, error: BaseException) -> None:
    with display(screen) as answer:
        answer.add("half a ")
        answer.refresh()
        screen.write("\x1b[?25l\x1b[?7l")  # as if a write had been cut short
        raise error


def test_a_stopped_answer_stays_and_says_so() -> None:
    screen = Screen()
    with display(screen) as answer:
        answer.add("A **bold")
        answer.stopped()
    assert screen.rows == ["A **bold", "(stopped)"]
    screen = Screen()
    with pytest.raises(KeyboardInterrupt):
        interrupted(screen, KeyboardInterrupt())
    assert screen.rows == ["half a", "(stopped)"]
    assert screen.is_at_rest


def test_an_error_leaves_what_came_and_a_terminal_at_rest() -> None:
    screen = Screen()
    with pytest.raises(RuntimeError, match="broken"):
        interrupted(screen, RuntimeError("broken"))
    assert screen.rows == ["half a"]
    assert screen.is_at_rest


def test_a_finished_answer_has_its_figures_beneath() -> None:
    screen, clock = Screen(), Clock()
    with display(screen, clock=clock) as answer:
        clock.now += 0.25
        answer.add("Yes.")
        answer.finish(LAST, context_used=300, context_limit=4096)  # type: ignore[arg-type]
    assert screen.rows == [
        "Yes.",
        "12 tokens · 40 tokens/s · first in 0.25 s · 1,024 reused · context 300 of 4,096",
    ]


def test_reading_a_long_prompt_is_shown_and_a_short_one_is_not() -> None:
    screen, clock = Screen(), Clock()
    with display(screen, clock=clock) as answer:
        answer.progress(0, 3000)
        answer.refresh()
        assert screen.rows == []
        clock.now += 1
        answer.progress(1500, 3000)
        answer.refresh()
        assert screen.rows[0].endswith("reading 1,500 of 3,000 tokens (50 %)")
        answer.add("Yes.")
        answer.refresh()
    assert screen.rows == ["Yes."]


def test_reasoning_is_seen_while_it_comes_and_folded_when_it_is_done() -> None:
    screen, clock = Screen(50, 12), Clock()
    with display(screen, clock=clock) as answer:
        answer.add("<thi")
        for i in range(60):
            answer.add("nk>\n" if i == 0 else f"thought {i}, ")
            clock.now += 0.1
            answer.refresh()
            assert len(screen.rows) <= 7
        assert "thinking, 6 s" in screen.rows[0]
        assert screen.rows[-1].endswith("thought 59,")
        answer.add("</think>\n\n")
        answer.refresh()
        assert screen.rows == ["thought for 5.9 s, 60 tokens · /think show"]
        answer.add("Yes.")
    assert screen.rows == ["thought for 5.9 s, 60 tokens · /think show", "", "Yes."]
    assert screen.gone == []


def test_rows_of_reasoning_stay_where_they_were_broken() -> None:
    screen = Screen(30, 20)
    seen: set[str] = set()
    with display(screen, thinking=True) as answer:
        for i in range(300):
            answer.add(f"word{i} ")
            answer.refresh()
            seen.update(screen.rows[1:-1])
    words = [row.split() for row in seen]
    assert sorted(word for row in words for word in row) == sorted({word for row in words for word in row})


def test_reasoning_that_is_to_be_shown_is_kept_dim() -> None:
    screen = Screen(40, 8)
    with display(screen, show_thinking=True, thinking=True) as answer:
        for i in range(40):
            answer.add(f"thought {i}, ")
            answer.refresh()
        answer.add("</think>Yes.")
    assert " ".join(screen.rows[:-3]) == ", ".join(f"thought {i}" for i in range(40)) + ","
    assert screen.rows[-3:] == ["thought for 0.00 s, 40 tokens", "", "Yes."]
    assert "\x1b[2m" in screen.written


def test_an_answer_stopped_inside_its_reasoning_says_so() -> None:
    screen = Screen()
    with display(screen) as answer:
        answer.add("<think>I wonder")
        answer.refresh()
        answer.stopped()
    assert screen.rows == ["stopped while thinking, after 0.00 s, 1 token · /think show"]


def test_a_call_is_no_text_but_a_sign_of_life_while_it_is_written() -> None:
    screen, clock = Screen(), Clock()
    with display(screen, tools=["look\x1b[2J"], clock=clock) as answer:
        for part in ("I look.\n\n", '<tool_call>{"name": "look\\u001b[2J", "argu', 'ments": {}}'):
            answer.add(part)
            answer.refresh()
        assert screen.rows == ["I look.", "⠋ calling look\\x1b[2J"]
        clock.now += 0.11
        answer.refresh()
        assert screen.rows[-1].startswith("⠙")
        answer.add("</tool_call>\n")
        answer.finish(None)
    assert screen.rows == ["I look."]


def test_an_empty_reasoning_is_not_mentioned() -> None:
    screen = Screen()
    show(screen, ["<think>", "\n\n", "</think>", "\n\n", "Yes."])
    assert screen.rows == ["Yes."]


@pytest.mark.parametrize("options", [{"force_terminal": False}, {"_environ": {"TERM": "dumb"}}])
def test_without_a_terminal_that_can_the_text_goes_out_as_it_comes(options: dict[str, Any]) -> None:
    file = io.StringIO()
    console = Console(file=file, width=20, **({"force_terminal": True} | options))
    with AnswerDisplay(console, reader()) as answer:
        for part, sofar in [
            ("A **bold** ", "A **bold** "),
            ("wo", "A **bold** wo"),
            ("rd\n\n- ", "A **bold** word\n\n- "),
        ]:
            answer.add(part)
            assert file.getvalue() == sofar
        answer.add("\x1b[31mred")
        answer.finish(None)
    assert file.getvalue() == "A **bold** word\n\n- \\x1b[31mred\n"


def test_without_colours_there_are_none() -> None:
    screen = Screen(no_color=True)
    show(screen, ["**bold** `code`\n\n```python\nimport os\n```\n"])
    assert not {code for code in OWN_SEQUENCES.findall(screen.written) if code.startswith(("\x1b[3", "\x1b[9"))} - {
        "\x1b[3m"
    }


def fill(answer: AnswerDisplay) -> None:
    until = time.monotonic() + 20
    with answer:
        while time.monotonic() < until:
            answer.add("x")
            time.sleep(0.01)


def test_the_thread_draws_by_itself_and_its_errors_come_out() -> None:
    screen = Screen()
    with display(screen, animated=True, clock=time.monotonic) as answer:
        answer.add("by itself")
        until = time.monotonic() + 20
        while screen.rows != ["by itself"]:
            assert time.monotonic() < until
            time.sleep(0.01)
    broken = display(screen, animated=True, clock=time.monotonic)

    def fail(*_: object) -> None:
        raise OSError("gone")

    broken._region.update = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        fill(broken)


def test_markdown_and_lexers_are_imported_when_they_are_needed() -> None:
    code = """
import sys, io
from rich.console import Console
from types import SimpleNamespace
from afmoe_mlx.chat.screen.display import AnswerDisplay
from afmoe_mlx.messages import AnswerReader
def libraries(): return {m for m in sys.modules if m.startswith(("markdown_it", "pygments", "rich.markdown"))}
assert not libraries(), libraries()
def show(text):
    console = Console(file=io.StringIO(), force_terminal=True)
    with AnswerDisplay(console, AnswerReader(SimpleNamespace(tool_template=None)), animated=False) as d: d.add(text)
show("plain words")
assert "pygments" not in sys.modules
show("```python\\nimport os\\n```")
lexers = {m for m in sys.modules if m.startswith("pygments.lexers.") and not m.startswith("pygments.lexers._")}
assert lexers == {"pygments.lexers.python"}, lexers
"""
    environ = os.environ | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ, capture_output=True, text=True)
