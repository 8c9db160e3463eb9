"""The user at the terminal, to whom a model's calls of tools are shown, and who is asked."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.text import Text

from afmoe_mlx.messages.rounds import Call
from afmoe_mlx.terminal import printable

from .keyboard.reader import Reader
from .screen.calls import call_lines, result_lines
from .screen.live_region import region_of
from .screen.waiting import waiting
from .tools.permissions import Choice
from .tools.results import ToolResult
from .tools.toolbox import Tool

QUESTION = "Run it? [o]nce, for this [s]ession, [n]ever; Enter: not now"
CHOICES = {
    "o": Choice.ONCE,
    "once": Choice.ONCE,
    "s": Choice.SESSION,
    "session": Choice.SESSION,
    "n": Choice.NEVER,
    "never": Choice.NEVER,
    "": Choice.NOT_NOW,
}


class PersonAtTerminal:
    """Shows calls as blocks and results folded, and asks on the keyboard; `agent.Person`."""

    def __init__(self, console: Console, reader: Reader) -> None:
        self._console, self._reader = console, reader

    def show_call(self, call: Call, tool: Tool | None) -> None:
        server = "" if tool is None else tool.server
        self._show(call_lines(call.name, call.arguments, self._console.width, server=server, error=call.error))

    def permit(self, call: Call, tool: Tool) -> Choice | None:
        while (typed := self._reader.ask(QUESTION)) is not None:
            if choice := CHOICES.get(typed.strip().casefold()):
                return choice
        return None

    def give(self, call: Call) -> str | None:
        text = self._reader.ask(f"The result of {call.name}:")
        self._show([Text()])
        return text

    def waiting(self, tool: Tool) -> AbstractContextManager[Any]:
        return waiting(self._console, f"{printable(tool.name)} runs, Ctrl-C stops it")

    def show_result(self, result: ToolResult) -> None:
        self._show([*result_lines(result.text, self._console.width, is_error=result.is_error), Text()])

    def _show(self, lines: list[Text]) -> None:
        region_of(self._console).print(lines)
