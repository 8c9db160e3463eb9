"""Commands about tools: /tools, /mcp, /output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from afmoe_mlx.command_line.tools import check_template, read_tools
from afmoe_mlx.errors import InputError
from afmoe_mlx.terminal import printable

from ..keyboard.completion import Candidate, files
from ..screen.calls import result_lines
from ..screen.live_region import region_of
from ..screen.status import count
from .conversation import NONE, first_words, whole_number

if TYPE_CHECKING:
    from ..loop import Chat
    from ..tools.toolbox import Tool


def tools(chat: Chat, argument: str) -> None:
    """Show what the model may call, offer it the tools of a file, or let go of those."""
    if argument:
        if argument != NONE:
            check_template(chat.conversation.tokenizer, option="/tools")
        chat.use_tools([] if argument == NONE else read_tools(argument, option="/tools") or [])
    offered = chat.agent.toolbox.tools
    if not offered:
        chat.say("There are no tools: /tools FILE offers those of a file, OpenAI's list of them as JSON.")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for tool in offered:
        description = first_words(str(tool.schema["function"].get("description") or ""))
        table.add_row(Text(printable(tool.name)), Text(printable(_whose(chat, tool))), Text(printable(description)))
    chat.show(table)


def _whose(chat: Chat, tool: Tool) -> str:
    if not tool.server:
        return "you give the result"
    standing = chat.agent.permissions.standing(tool)
    return f"{tool.server}, {standing.value if standing else 'asks'}"


def complete_tools(chat: Chat, typed: str) -> Iterator[Candidate]:
    yield from files(typed, (".json",))


def mcp(chat: Chat, argument: str) -> None:
    """The MCP servers, and why one is not there."""
    client = chat.agent.toolbox.client
    if client is None:
        chat.say("There are no MCP servers: `afmoe-mlx chat --mcp FILE` starts those of a file.")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column()
    for server in client.servers.values():
        state = Text(server.trouble, style="red") if server.trouble else Text(count(len(server.tools), "tool"))
        table.add_row(Text(printable(server.name)), state)
    chat.show(table)
    chat.say("/tools lists what they offer.")


def output(chat: Chat, argument: str) -> None:
    """All of what a tool gave, the last one or one before it."""
    number = whole_number(argument or "1", "/output counts from the last")
    found = [message["content"] for message in chat.conversation.messages if message["role"] == "tool"]
    if number > len(found):
        raise InputError(
            f"there {'is' if len(found) == 1 else 'are'} {count(len(found), 'result')} in this conversation"
        )
    region_of(chat.console).print(result_lines(found[-number], chat.console.width, rows=None))
