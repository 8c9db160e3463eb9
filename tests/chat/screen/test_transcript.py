"""A conversation taken up again is shown as it looked, the last screen of it."""

import io

import pytest
from rich.console import Console

from afmoe_mlx.chat.screen.transcript import show_transcript
from helpers.markdown_texts import HOSTILE
from helpers.screens import Screen


def turns(count: int) -> list[dict[str, str]]:
    return [
        message
        for i in range(count)
        for message in (
            {"role": "user", "content": f"question {i}"},
            {"role": "assistant", "content": f"**answer** {i}"},
        )
    ]


def test_a_short_conversation_is_shown_whole() -> None:
    screen = Screen()
    messages = [{"role": "system", "content": "Be brief."}, *turns(2)]
    show_transcript(screen.console, messages)
    assert screen.rows == [
        "system: Be brief.",
        "> question 0",
        "answer 0",
        "",
        "> question 1",
        "answer 1",
    ]
    assert screen.cursor == (6, 0)


@pytest.mark.parametrize("height", [4, 10, 24])
def test_of_a_long_one_the_last_screen_is_shown(height: int) -> None:
    screen = Screen(40, height)
    show_transcript(screen.console, turns(50))
    assert screen.gone == [] or height == 4
    assert screen.rows[0].startswith("… ")
    assert screen.rows[-2:] == ["> question 49", "answer 49"]
    hidden = int(screen.rows[0].split()[1])
    assert f"answer {hidden // 2}" in screen.rows


def test_of_an_answer_longer_than_the_screen_its_end_is_shown() -> None:
    screen = Screen(20, 12)
    code = "".join(f"line {i} {'x' * 30}\n" for i in range(500))
    show_transcript(
        screen.console, [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"```\n{code}```"}]
    )
    assert screen.gone == []
    assert screen.rows[0] == "… 1 earlier message"
    assert screen.rows[-3].startswith("line 499")


def test_reasoning_is_folded_or_shown_and_a_stopped_answer_says_so() -> None:
    message = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nyes", "stopped": True}
    folded, shown = Screen(), Screen()
    show_transcript(folded.console, [message])
    show_transcript(shown.console, [message], show_thinking=True)
    assert folded.rows == ["thought · /think show", "", "yes", "(stopped)"]
    cut = Screen(40, 10)
    show_transcript(cut.console, [{"role": "assistant", "content": "yes", "cut_off": True}])
    assert cut.rows == ["yes", "(cut off)"]
    assert shown.rows == ["why", "", "yes", "(stopped)"]


@pytest.mark.parametrize("role", ["user", "assistant", "system", "\x1b[31m"])
def test_what_a_file_holds_is_shown_and_never_obeyed(role: str) -> None:
    for text in HOSTILE:
        screen = Screen()
        show_transcript(screen.console, [{"role": role, "content": text}])
        assert screen.foreign() == ""
        assert "\u202e" not in screen.written
        assert screen.rows


def test_without_a_terminal_it_is_plain_text() -> None:
    file = io.StringIO()
    show_transcript(Console(file=file, width=40), turns(1))
    assert file.getvalue() == "> question 0\n**answer** 0\n"
    show_transcript(Console(file=file, width=40), [])
