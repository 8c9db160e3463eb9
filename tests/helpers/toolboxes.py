"""Tools whose servers are no processes."""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from afmoe_mlx.chat.tools.results import ToolResult
from afmoe_mlx.chat.tools.toolbox import Toolbox


class FakeClient:
    """Servers with tools of these names, which give their arguments, or what `give` does."""

    def __init__(self, give: Callable[[str, Mapping[str, Any]], str] | None = None, **servers: list[str]) -> None:
        self.servers: dict[str, Any] = {
            name: SimpleNamespace(name=name, tools=[_tool(tool) for tool in tools], trouble="")
            for name, tools in servers.items()
        }
        self.calls: list[tuple[str, str, Any]] = []
        self._give = give or (lambda name, arguments: f"{name} gives {json.dumps(arguments)}")

    def call(self, server: str, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        self.calls.append((server, tool, arguments))
        return ToolResult(self._give(tool, arguments))


def _tool(name: str) -> Any:
    return SimpleNamespace(name=name, description=f"does {name}", input_schema={"type": "object"})


def toolbox(give: Any = None, **servers: list[str]) -> Toolbox:
    client: Any = FakeClient(give, **servers)
    return Toolbox(client)


def called(name: str, arguments: str = "{}") -> str:
    """A call as Hermes writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def schema(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "said by the user"}}
