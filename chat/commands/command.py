"""The table of slash commands, their parser and completion; /help is made from it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from afmoe_mlx.errors import InputError

from ..keyboard.completion import Candidate, words
from . import conversation as talk
from . import files as file
from . import schema as schemas
from . import tools as tool

if TYPE_CHECKING:
    from ..loop import Chat

# A line that leaves, as in mlx_lm.chat.
LEAVES = "q"
# A name, and what stands after it; a path such as /usr/bin is no command.
_LINE = re.compile(r"/([^\s/]*)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command. arguments: as in /help; complete: candidates for what is typed after the name so far."""

    name: str
    arguments: str
    help: str
    run: Callable[[Chat, str], None]
    complete: Callable[[Chat, str], Iterable[Candidate]] | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A command line, taken apart."""

    name: str
    argument: str


def show_help(chat: Chat, argument: str) -> None:
    """Every command with its arguments and meaning."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(style="dim")
    for command in COMMANDS:
        also = f" (also {', '.join('/' + alias for alias in command.aliases)})" if command.aliases else ""
        table.add_row(Text(f"/{command.name} {command.arguments}".rstrip()), Text(command.help + also))
    chat.show(table)
    chat.say(
        "\nEnter sends, Alt-Enter or Ctrl-J begins another line, Tab completes, Ctrl-R searches what was typed before."
        " Ctrl-C stops an answer, and a q alone leaves, too. To send a message that begins with a slash, type two."
    )


def leave(chat: Chat, argument: str) -> None:
    chat.done = True


COMMANDS = (
    Command("help", "", "show this list", show_help),
    Command("new", "", "begin a new conversation", talk.new, aliases=("clear",)),
    Command("regenerate", "", "have the last message answered anew", talk.regenerate),
    Command("edit", "", "change the last message and have it answered", talk.edit),
    Command("edit!", "", "the same in $VISUAL or $EDITOR", talk.edit_in_editor),
    Command("undo", "[N]", "take back the last turn, or the last N", talk.undo),
    Command("system", "[TEXT]", "show the system prompt, or give another; none removes it", talk.system),
    Command("model", "[NAME]", "show the model, or go on with another", talk.model, talk.complete_model),
    Command(
        "adapter",
        "[DIR]",
        "show the adapter, or go on with another; none removes it",
        talk.adapter,
        talk.complete_adapter,
    ),
    Command("set", "[NAME VALUE]", "show how tokens are chosen, or change it", talk.set_option, talk.complete_set),
    Command(
        "schema", "[FILE|JSON]", "hold answers to a JSON schema; none sets them free", schemas.schema, schemas.complete
    ),
    Command("think", "show|hide", "show the model's reasoning, or fold it to a line", talk.think, talk.complete_think),
    Command("stats", "", "show figures of the last answer and the conversation", talk.stats),
    Command("file", "[PATH]", "attach a text file to the next message, or none", file.attach, file.complete_attach),
    Command(
        "tools",
        "[FILE]",
        "show what the model may call, or offer the tools of a file",
        tool.tools,
        tool.complete_tools,
    ),
    Command("mcp", "", "show the MCP servers", tool.mcp),
    Command("output", "[N]", "show all that the last call gave, or the Nth last", tool.output),
    Command("copy", "[N]", "copy the last answer, or its Nth block of code", file.copy),
    Command("save", "[NAME]", "give this conversation a name", file.save),
    Command("load", "[NAME]", "go on with a saved conversation", file.load, file.complete_session),
    Command("sessions", "", "list the saved conversations", file.list_sessions),
    Command("export", "PATH", "write the conversation to a .md or .json file", file.export, file.complete_export),
    Command("exit", "", "leave", leave, aliases=("quit", "bye")),
)
_NAMES = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


def take(chat: Chat, line: str) -> str | None:
    """Obey a line that is a command; of any other, the message to send, "" for none. Raises what a command does."""
    if (found := parse(line)) is None:
        return message(line)
    obey(chat, found)
    return None


def parse(line: str) -> Line | None:
    """The command in a line; None for a message.

    A line is a command if it begins with a slash and a word; two slashes, a space before the slash, and a word with
    more slashes in it, as a path has, make a message of it. A q alone leaves; with a space before it, it is a message.
    """
    if line.rstrip() == LEAVES:
        return Line("exit", "")
    match = _LINE.fullmatch(line.rstrip())
    if not match:
        return None
    return Line(match[1].casefold(), (match[2] or "").strip())


def message(line: str) -> str:
    """What is sent of a line that is no command."""
    text = line.strip()
    if "\n" in text:
        text = line.strip("\n").rstrip()  # code keeps the indentation of its first line
    return text[1:] if line.startswith("//") else text


def find(name: str) -> Command:
    """The command of a name or alias; InputError with the nearest one for any other."""
    if name in _NAMES:
        return _NAMES[name]
    near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.5)
    starts = [known for known in _NAMES if name and known.startswith(name)]
    hint = f"did you mean /{(starts or near)[0]}?" if starts or near else "/help lists those there are"
    raise InputError(f"no command /{name}: {hint} (with two slashes it is sent as a message)")


def obey(chat: Chat, line: Line) -> None:
    """Run the command of a line; InputError if there is none, or if it is given an argument and takes none."""
    command = find(line.name)
    if line.argument and not command.arguments:
        raise InputError(f"/{line.name} stands alone: found {line.argument[:40]!r} after it")
    command.run(chat, line.argument)


def complete(chat: Chat, text: str) -> Iterator[Candidate]:
    """What a line may go on with; `text` is what stands before the cursor."""
    match = _LINE.fullmatch(text)
    if not match:
        return
    if match[2] is None and not text[-1].isspace():
        yield from words(((f"/{command.name}", command.help) for command in COMMANDS), text)
        return
    command = _NAMES.get(match[1].casefold())
    if command is not None and command.complete is not None:
        yield from command.complete(chat, match[2] or "")
