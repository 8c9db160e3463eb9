"""Answers shown on an emulated screen."""

from collections.abc import Sequence
from typing import Any

from afmoe_mlx.chat.screen.display import AnswerDisplay
from afmoe_mlx.chat.screen.live_region import region_of
from afmoe_mlx.chat.screen.markdown import markdown_lines
from afmoe_mlx.messages import AnswerReader
from helpers.fake_engine import FakeTokenizer
from helpers.screens import Screen


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def display(screen: Screen, *, thinking: bool = False, tools: Sequence[str] = (), **options: Any) -> AnswerDisplay:
    """thinking: the template has opened the reasoning."""
    options = {"animated": False, "clock": options.pop("clock", Clock()), **options}
    return AnswerDisplay(screen.console, reader("<think>\n" if thinking else "", tools), **options)


def reader(beginning: str = "", tools: Sequence[str] = ()) -> AnswerReader:
    """A reader of answers, with calls as Hermes writes them."""
    tokenizer: Any = FakeTokenizer()
    return AnswerReader(tokenizer, [{"function": {"name": name}} for name in tools], beginning=beginning)


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


PARAGRAPH = "words of several lengths, 中文 and 日本語 among them, that go on " * 6
