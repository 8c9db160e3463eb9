"""Answers shown on an emulated screen."""

from typing import Any

from afmoe_mlx.chat.screen.display import AnswerDisplay
from afmoe_mlx.chat.screen.live_region import region_of
from afmoe_mlx.chat.screen.markdown import markdown_lines
from helpers.screens import Screen


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


PARAGRAPH = "words of several lengths, 中文 and 日本語 among them, that go on " * 6
