"""An answer on the terminal: drawn anew only where it may change, whole at the end, and never in command of it."""

import io
import os
import pty
import re
import subprocess
import sys
import termios
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_texts import cuts, split, texts
from rich.cells import cell_len
from rich.console import Console
from screens import OWN_SEQUENCES, Screen

from afmoe_mlx.chat.screen.display import AnswerDisplay
from afmoe_mlx.chat.screen.live_region import LiveRegion, does_reflow, region_of
from afmoe_mlx.chat.screen.markdown import markdown_lines
from afmoe_mlx.chat.screen.silence import silent_keyboard

LAST = SimpleNamespace(generation_tokens=12, generation_tps=40.0, cached_tokens=1024, finish_reason="stop")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def display(screen: Screen, **options: Any) -> AnswerDisplay:
    return AnswerDisplay(screen.console, animated=False, clock=options.pop("clock", Clock()), **options)


def show(screen: Screen, parts: list[str], **options: Any) -> None:
    with display(screen, **options) as answer:
        for part in parts:
            answer.add(part)
            answer.refresh()


def whole(text: str, width: int, height: int) -> list[str]:
    """What is on the screen when the text is rendered at once."""
    screen = Screen(width, height)
    region_of(screen.console).print(markdown_lines(text, screen.console, width))
    return screen.rows


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
    code = [f"    x[{i}] = {i}" for i in range(200)]
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


PARAGRAPH = "words of several lengths, 中文 and 日本語 among them, that go on " * 6


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


@settings(deadline=None, max_examples=40)
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


def test_an_empty_reasoning_is_not_mentioned() -> None:
    screen = Screen()
    show(screen, ["<think>", "\n\n", "</think>", "\n\n", "Yes."])
    assert screen.rows == ["Yes."]


@pytest.mark.parametrize("options", [{"force_terminal": False}, {"_environ": {"TERM": "dumb"}}])
def test_without_a_terminal_that_can_the_text_goes_out_as_it_comes(options: dict[str, Any]) -> None:
    file = io.StringIO()
    console = Console(file=file, width=20, **({"force_terminal": True} | options))
    with AnswerDisplay(console) as answer:
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


HOSTILE = [
    *map(chr, [*range(9), *range(11, 32), *range(127, 160)]),
    "\x1b]52;c;aGVsbG8=\x07",
    "\x1b]8;;https://example.com\x1b\\label\x1b]8;;\x1b\\",
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "\x1b[?1049h",
    "\x1bPq#0\x1b\\",
    "\x9b31m\x9d0;t\x9c",
    "\u202eright to left\u202c",
    "&#27;[31m &#x9b;31m &#x202e;",
    "[bold]bold[/bold] [link=https://example.com]x[/link]",
    "[label](https://example.com/\x1b[31m)",
    "![\x1b[31m](https://example.com)",
    "<https://example.com/\x07>",
    "\ud800",
]
WAYS = [
    "{}",
    "# {}",
    "- {}",
    "> {}",
    "```{}\n{}\n```",
    "    {}",
    "| {} |\n|---|\n| {} |",
    "**{}**",
    "`{}`",
    "<think>{}",
]


@pytest.mark.parametrize("markdown", [True, False])
@pytest.mark.parametrize("show_thinking", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_model_writes_is_shown_and_never_obeyed(way: str, show_thinking: bool, markdown: bool) -> None:
    for text in HOSTILE:
        screen = Screen()
        show(screen, list(way.replace("{}", text)), show_thinking=show_thinking, markdown=markdown)
        assert screen.foreign() == ""
        assert "\x1b]" not in screen.written
        assert "\u202e" not in screen.written
        if markdown and "[bold]" in text and "<think>" not in way:
            assert "[bold]bold[/bold]" in "".join(screen.rows)


def test_a_link_is_shown_with_its_target() -> None:
    screen = Screen()
    show(screen, ["[my bank](https://evil.example) <https://example.org> [https://a.example](https://b.example)"])
    assert screen.rows == [
        "my bank (https://evil.example) https://example.org https://a.example",
        "(https://b.example)",
    ]
    assert "\x1b]8" not in screen.written


def test_wide_characters_align() -> None:
    console = Console(file=io.StringIO(), width=60)
    table = "| 名前 | b | c |\n|---|---|---|\n| 日本 | 1 | x |\n| a | 22 | x |\n| 👩‍👩‍👧 | 3 | x |\n| ❤️ | 4 | x |\n"
    rows = [line.plain for line in markdown_lines(table, console, 60)]
    columns = {cell_len(row[: row.rindex(" ") + 1]) for row in rows if row.endswith("x")}
    assert len(columns) == 1


def test_chinese_is_broken_between_characters_and_not_before_a_comma() -> None:
    console = Console(file=io.StringIO(), width=11)
    assert [line.plain for line in markdown_lines("在 Python 中我们，可以", console, 11)] == [
        "在 Python",
        "中我们，可",
        "以",
    ]


def test_a_tab_in_code_reaches_its_column() -> None:
    screen = Screen()
    show(screen, ["```make\nall:\n\tcc a.c\n  \tx\n```"])
    assert screen.rows[1:4] == ["all:", "    cc a.c", "    x"]


def test_html_is_shown_as_text() -> None:
    screen = Screen()
    show(screen, ["<div onclick='x'>\n\na <b>c</b> <!-- d --> &lt;"])
    assert screen.rows == ["<div onclick='x'>", "", "a <b>c</b> <!-- d --> <"]


def fill(answer: AnswerDisplay) -> None:
    until = time.monotonic() + 20
    with answer:
        while time.monotonic() < until:
            answer.add("x")
            time.sleep(0.01)


def test_the_thread_draws_by_itself_and_its_errors_come_out() -> None:
    screen = Screen()
    with AnswerDisplay(screen.console) as answer:
        answer.add("by itself")
        until = time.monotonic() + 20
        while screen.rows != ["by itself"]:
            assert time.monotonic() < until
            time.sleep(0.01)
    broken = AnswerDisplay(screen.console)

    def fail(*_: object) -> None:
        raise OSError("gone")

    broken._region.update = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        fill(broken)


def test_what_is_typed_meanwhile_is_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin, os.fdopen(master):
        monkeypatch.setattr(sys, "stdin", stdin)
        before = termios.tcgetattr(slave)
        with silent_keyboard():
            flags = termios.tcgetattr(slave)[3]
            assert not flags & termios.ECHO
            assert flags & termios.ISIG
        assert termios.tcgetattr(slave) == before


def test_a_terminal_that_is_closed_meanwhile_hides_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)

        def hang_up() -> None:
            with silent_keyboard():
                os.close(master)
                raise SystemExit(129)

        with pytest.raises(SystemExit):
            hang_up()


def test_the_keyboard_comes_back_though_nothing_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin, os.fdopen(master):
        monkeypatch.setattr(sys, "stdin", stdin)
        before = termios.tcgetattr(slave)
        screen = Screen()

        def fail(*_: object) -> None:
            raise OSError("gone")

        answer = AnswerDisplay(screen.console, animated=False)
        monkeypatch.setattr(answer._region, "_write", fail)
        answer.add("text")
        with pytest.raises(OSError, match="gone"), answer:
            raise KeyboardInterrupt
        assert termios.tcgetattr(slave) == before


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


def test_markdown_and_lexers_are_imported_when_they_are_needed() -> None:
    code = """
import sys, io
from rich.console import Console
from afmoe_mlx.chat.screen.display import AnswerDisplay
def libraries(): return {m for m in sys.modules if m.startswith(("markdown_it", "pygments", "rich.markdown"))}
assert not libraries(), libraries()
def show(text):
    with AnswerDisplay(Console(file=io.StringIO(), force_terminal=True), animated=False) as d: d.add(text)
show("plain words")
assert "pygments" not in sys.modules
show("```python\\nimport os\\n```")
lexers = {m for m in sys.modules if m.startswith("pygments.lexers.") and not m.startswith("pygments.lexers._")}
assert lexers == {"pygments.lexers.python"}, lexers
"""
    environ = os.environ | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ, capture_output=True, text=True)
