"""One question from the command line or stdin, answered once."""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from afmoe_mlx.command_line.answer import Answer, AnswerPrinter, receive, summary, tell_cut_off
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import is_constrained
from afmoe_mlx.generation.loop import Progress
from afmoe_mlx.messages import ArgumentsDelta, CallEnd, CallStart, Delta
from afmoe_mlx.messages.rounds import Call
from afmoe_mlx.terminal import is_terminal, note, read_stdin, write_json

from .conversation.conversation import Chunks, Conversation
from .keyboard.reader import PlainReader
from .loop import View
from .person import PersonAtTerminal
from .tools.agent import MOST_ROUNDS, Agent, Person
from .tools.permissions import Choice, Permissions
from .tools.results import ToolResult
from .tools.toolbox import Tool, Toolbox

if TYPE_CHECKING:
    from rich.console import Console

Begin = Callable[[Progress | None], Chunks]
"""Begins an answer."""

FIRST = 80  # characters of a result that are told


def question(argument: str | None) -> str | None:
    """What is asked: what stands on stdin if that is no terminal, then the argument; None for a chat on a terminal."""
    has_terminal = is_terminal(sys.stdin)
    if argument is None and has_terminal:
        return None
    piped = "" if has_terminal or (sys.stdin is None and argument) else read_stdin().strip()
    text = "\n\n".join(part for part in (piped, (argument or "").strip()) if part)
    if not text:
        raise InputError(
            "the question is empty: expected a message" if argument else "stdin is empty: expected a message"
        )
    return text


def answer(
    conversation: Conversation, text: str, view: View, toolbox: Toolbox, permissions: Permissions, *, as_json: bool
) -> int:
    """Print the answer to a message; the exit status, 130 if it was interrupted.

    Plain text, as it comes, its reasoning on stderr; as Markdown where both stdin and stdout are a terminal; or one
    JSON object, as `afmoe-mlx generate --json` prints it: that of the last answer, where tools were called before it.
    Tools of MCP servers are run where they are permitted, or the person at the terminal says so.
    """
    person: Person = Nobody()
    if not as_json and view.markdown and is_terminal(sys.stdin, sys.stdout):
        from rich.console import Console

        console = Console(highlight=False)
        person = PersonAtTerminal(console, PlainReader())
        take = partial(_shown, conversation, console, view)
    else:
        take = partial(_received, conversation, None if as_json else _Printer(toolbox))
    found = [take(lambda progress: conversation.reply(text, on_progress=progress))]

    def go_on() -> None:
        found.append(take(lambda progress: conversation.go_on(on_progress=progress)))

    agent = Agent(toolbox, permissions, person)
    if not found[0].is_interrupted and not agent.finish_turn(conversation, go_on):
        note(f"{MOST_ROUNDS} times tools were called: that is enough", dim=True)
    if as_json:
        speculated = any(conversation.options.get(name) for name in ("draft_model", "prompt_lookup"))
        held = is_constrained(conversation.options)
        told = summary(found[-1], speculated=speculated, kept=conversation.store is not None, held=held)
        write_json(told | conversation.reads.figures(found[-1].last))
    elif not found[-1].is_interrupted:
        tell_cut_off(found[-1], context=conversation.context_limit)
    return 130 if found[-1].is_interrupted or agent.is_stopped else 0


def _received(conversation: Conversation, printer: AnswerPrinter | None, begin: Begin) -> Answer:
    with closing(begin(None)) as chunks:
        found = Answer(conversation.reader())
        receive(found, chunks, printer)
    return found


def _shown(conversation: Conversation, console: "Console", view: View, begin: Begin) -> Answer:
    from .screen.display import AnswerDisplay

    shown: list[AnswerDisplay] = []
    chunks = begin(lambda done, total: shown[0].progress(done, total))
    found = Answer(conversation.reader())
    shown.append(AnswerDisplay(console, conversation.reader(), show_thinking=view.thinking))
    try:
        with shown[0] as display, closing(chunks):
            for chunk in chunks:
                found.add(chunk)
                display.add(chunk.text)
            display.finish(None)
    except KeyboardInterrupt:
        found.is_interrupted = True
    return found


class Nobody:
    """Nobody who could be asked: what does not stand permitted is refused; `agent.Person`."""

    def show_call(self, call: Call, tool: Tool | None) -> None:
        if tool is None or tool.server:
            note(f"→ {call.name}({' '.join(call.arguments.split())})", dim=True)

    def permit(self, call: Call, tool: Tool) -> Choice:
        note(f"{tool.name} is not run: --allow-tool {tool.name} permits it")
        return Choice.NEVER

    def give(self, call: Call) -> None:
        """The call is the answer: whoever asked has it."""

    def waiting(self, tool: Tool) -> AbstractContextManager[None]:
        return nullcontext()

    def show_result(self, result: ToolResult) -> None:
        line = " ".join(result.text.split())
        note(f"  {line[:FIRST]}{'…' if len(line) > FIRST else ''}", dim=True)


class _Printer(AnswerPrinter):
    """Prints no calls but those that are the answer: the others are told as they are made."""

    def __init__(self, toolbox: Toolbox) -> None:
        super().__init__()
        self._toolbox = toolbox
        self._is_made = self._has_text = False

    def _write(self, text: str) -> None:
        self._has_text = True
        super()._write(text)

    def show(self, deltas: Iterable[Delta]) -> None:
        super().show(delta for delta in deltas if not self._is_for_others(delta))

    def end(self) -> None:
        if self._is_made and not self._has_text:
            self._end_reasoning()  # an empty line would stand before the answer
        else:
            super().end()

    def _is_for_others(self, delta: Delta) -> bool:
        if isinstance(delta, CallStart):
            tool = self._toolbox.get(delta.name)
            self._is_made = tool is not None and bool(tool.server)
        return self._is_made and isinstance(delta, CallStart | ArgumentsDelta | CallEnd)
