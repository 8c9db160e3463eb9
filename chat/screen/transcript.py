"""The transcript of a resumed conversation: its last screen, as it looked when it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.style import Style
from rich.text import Text

from afmoe_mlx.messages.prompts import ending
from afmoe_mlx.messages.reasoning import split_thinking
from afmoe_mlx.messages.rounds import calls_of
from afmoe_mlx.terminal import printable

from .calls import call_lines, result_lines
from .live_region import is_live, region_of
from .sections import DIM, PlainSection
from .wrap import fold, wrap

if TYPE_CHECKING:
    from rich.console import Console

PROMPT = "> "
ROWS_LEFT = 3  # for what stands around it and the next prompt
LEAST_ROWS = 6


def show_transcript(
    console: Console, messages: Sequence[Mapping[str, Any]], *, show_thinking: bool = False, markdown: bool = True
) -> None:
    """Print the end of a conversation, as much as the terminal has rows, with a word on what stands before."""
    width, rows = console.width, max(LEAST_ROWS, console.height - ROWS_LEFT)
    lines: list[tuple[int, Text]] = []  # each with its message's index
    first, taken = len(messages), 0
    while first and taken < rows:
        first -= 1
        shown = message_lines(console, messages[first], show_thinking=show_thinking, markdown=markdown)
        if lines and _ends_a_part(messages[first], messages[first + 1]):
            shown.append(Text())
        lines = [*((first, line) for line in shown), *lines]
        taken += sum(_height(line, width) for line in shown)
    start = len(lines)
    while start and (rows := rows - _height(lines[start - 1][1], width)) >= 0:
        start -= 1
    last = lines[min(start, max(0, len(lines) - 1)) :]  # the last line anyway
    while last and not last[0][1]:
        del last[0]
    head = [_earlier(last[0][0])] if last and (first or len(last) < len(lines)) else []
    region_of(console).print([*head, *(line for _, line in last)])


def message_lines(
    console: Console, message: Mapping[str, Any], *, show_thinking: bool = False, markdown: bool = True
) -> list[Text]:
    """One message as lines; made printable here."""
    width, content = console.width, printable(str(message.get("content") or ""))
    if message["role"] == "user":
        lines = wrap(Text(content.expandtabs(4)), max(1, width - len(PROMPT)))
        return [
            Text.assemble((" " * len(PROMPT) if i else PROMPT, Style(bold=True)), line) for i, line in enumerate(lines)
        ]
    if message["role"] == "tool":
        head = wrap(Text(f"← {printable(str(message.get('name', '')))}".rstrip(), DIM), width)
        return [*head, *result_lines(str(message.get("content") or ""), width)]
    if message["role"] != "assistant":
        return wrap(Text(printable(f"{message['role']}: ") + content.strip(), DIM), width)
    thought, answer = split_thinking(content)
    lines = []
    if thought.strip() and show_thinking:
        lines += wrap(Text(thought.strip(), DIM), width)
    elif thought.strip():
        lines.append(Text("thought · /think show", DIM))
    if lines and answer.strip():
        lines.append(Text())
    calls = calls_of(message)
    if answer.strip() or not calls:
        lines += _answer_lines(console, answer, markdown=markdown and is_live(console))
    for call in calls:
        lines += [*[Text()] * bool(lines), *call_lines(call.name, call.arguments, width, error=call.error)]
    if words := ending(message):
        lines.append(Text(f"({words})", DIM))
    return lines


def _ends_a_part(message: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a blank line stands after a message: an answer, and the results of its calls."""
    if message["role"] == "tool":
        return bool(after["role"] != "tool")
    return message["role"] == "assistant" and not message.get("tool_calls")


def _answer_lines(console: Console, answer: str, *, markdown: bool) -> list[Text]:
    if markdown:
        from .markdown import markdown_lines

        return markdown_lines(answer, console, console.width)
    section = PlainSection()
    section.feed(answer.strip("\n"))
    return section.end(console.width)


def _earlier(count: int) -> Text:
    return Text(f"… {count} earlier message{'' if count == 1 else 's'}" if count else "…", DIM)


def _height(line: Text, width: int) -> int:
    """Rows that a line takes; code may take several."""
    return len(fold(line, width))
