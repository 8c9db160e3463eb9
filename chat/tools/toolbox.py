"""The tools that a chat offers its model: those of a file, and those of MCP servers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .results import ToolResult

if TYPE_CHECKING:
    from .mcp_client import McpClient
    from .mcp_server import McpServer

LONGEST_NAME = 64  # as OpenAI's interface has it


@dataclass(frozen=True)
class Tool:
    """Something that the model may call.

    name: what the model calls it. schema: OpenAI's form, under that name. server: the MCP server that runs it, where it
    is called `original`; "" for a tool of a file, whose results the user gives.
    """

    name: str
    schema: Mapping[str, Any]
    server: str = ""
    original: str = ""


class Toolbox:
    """All that the model may call, by name, the tools of the file first. A server's tools are those of its start."""

    def __init__(self, client: "McpClient | None" = None) -> None:
        self.client = client
        self._tools: dict[str, Tool] = {}
        self.use([])

    def use(self, schemas: Sequence[Mapping[str, Any]]) -> None:
        """Offer these tools of a file, in OpenAI's form, in place of those before."""
        typed = [Tool(schema["function"]["name"], schema) for schema in schemas]
        servers = [] if self.client is None else self.client.servers.values()
        self._tools = {tool.name: tool for tool in [*typed, *_tools_of(servers, {tool.name for tool in typed})]}

    @property
    def tools(self) -> list[Tool]:
        return list(self._tools.values())

    @property
    def schemas(self) -> list[Mapping[str, Any]]:
        """What the model is told."""
        return [tool.schema for tool in self.tools]

    def get(self, name: str) -> Tool | None:
        """The tool of a name."""
        return self._tools.get(name)

    def trouble(self, tool: Tool) -> str:
        """Why a server's tool cannot be called any more; "" if it can."""
        assert self.client is not None
        return self.client.servers[tool.server].trouble

    def call(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """What a server's tool gives; see `McpClient.call`."""
        assert self.client is not None
        return self.client.call(tool.server, tool.original, arguments)


def _tools_of(servers: Iterable["McpServer"], taken: set[str]) -> list[Tool]:
    """The servers' tools under names of their own: what several have is named after the server, too."""
    found = [(server.name, tool) for server in servers for tool in server.tools]
    names = [_name(tool.name) for _, tool in found]
    tools = []
    for (server, tool), name in zip(found, names, strict=True):
        if names.count(name) > 1 or name in taken:
            name = _name(f"{server}_{name}")
        if name in taken:  # a server that names two alike
            name = next(
                other for i in range(2, len(found) + 3) if (other := f"{name[: LONGEST_NAME - 4]}_{i}") not in taken
            )
        taken.add(name)
        function = {"name": name, "description": tool.description or "", "parameters": tool.input_schema}
        tools.append(Tool(name, {"type": "function", "function": function}, server, tool.name))
    return tools


def _name(text: str) -> str:
    """A name that every model can write, those that call as Python does included."""
    name = re.sub(r"[^A-Za-z0-9_.]", "_", text)[:LONGEST_NAME]
    return name if name[:1].isalpha() or name.startswith("_") else f"_{name}"[:LONGEST_NAME]
