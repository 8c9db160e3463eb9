"""One MCP server over stdio: started, asked for its tools, called, ended. Its own task does all of that."""

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from afmoe_mlx.terminal import printable

from .results import ToolResult, failure, of_server
from .server_file import ServerConfig

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import Tool

MOST_PAGES = 100  # of a list of tools
TAIL = 4096  # bytes of what a server last wrote on stderr
LONGEST_LINE = 200  # characters of them that are told


class McpServer:
    """A server's state, which any thread may read, and its life, which runs in an event loop.

    tools: what it offers. trouble: why it cannot be called, in a line; "" as long as it can, or is being started.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.tools: tuple[Tool, ...] = ()
        self.trouble = config.refusal
        self._client: Client | None = None
        self._stderr = _Tail()

    @property
    def name(self) -> str:
        return self.config.name

    async def live(self, started: asyncio.Event, seconds: float) -> None:
        """Start it in so many seconds and set `started`; its trouble says what fails. Cancelled, it ends the server."""
        try:
            async with AsyncExitStack() as resources:
                async with asyncio.timeout(seconds):
                    client = await self._connect(resources)
                    self.tools = await _tools(client)
                self._client = client
                started.set()
                await asyncio.Event().wait()
        except Exception as error:  # whatever a server does is its own trouble
            is_late = isinstance(_first(error), TimeoutError)
            reason = f"it did not answer within {seconds:g} s of its start" if is_late else _reason(error)
            self.trouble = f"{reason}{self._last_words()}"
        finally:
            started.set()

    async def call(self, tool: str, arguments: Mapping[str, Any], seconds: float) -> ToolResult:
        """The result of a call, that of one that fails too; cancelled, it tells the server so."""
        assert self._client is not None
        try:
            async with asyncio.timeout(seconds):
                return of_server(await self._client.call_tool(tool, dict(arguments)))
        except TimeoutError:
            return failure(f"the server {self.name} did not answer within {seconds:g} s")
        except Exception as error:
            reason = _reason(error)
            if _is_end(error):
                self.trouble = f"{reason}{self._last_words()}"
            return failure(f"the server {self.name} gave no result: {reason}")

    async def _connect(self, resources: AsyncExitStack) -> "Client":
        from mcp import Client, StdioServerParameters, stdio_client

        config = self.config
        parameters = StdioServerParameters(
            command=config.command, args=list(config.args), env=dict(config.env), cwd=config.cwd
        )
        resources.callback(self._stderr.close)
        with os.fdopen(self._stderr.open(), "w") as stderr:
            return await resources.enter_async_context(Client(stdio_client(parameters, errlog=stderr), cache=None))

    def _last_words(self) -> str:
        line = self._stderr.last_line
        return f" ({line})" if line else ""


async def _tools(client: "Client") -> "tuple[Tool, ...]":
    if client.server_capabilities.tools is None:
        return ()
    found: list[Tool] = []
    cursor = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        if not (cursor := page.next_cursor):
            break
    return tuple(found)


def _reason(error: BaseException) -> str:
    """An error in a line, the first of those that failed together."""
    from pydantic import ValidationError

    error = _first(error)
    if isinstance(error, ValidationError):
        wrong = error.errors()[0]
        return _line(f"it answered what MCP does not have: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}")
    if isinstance(error, FileNotFoundError):
        return _line(f"there is no {error.filename}")
    if _is_end(error):
        return "it has ended"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _line(words or type(error).__name__)


def _first(error: BaseException) -> BaseException:
    """The first of errors that came together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _is_end(error: BaseException) -> bool:
    """Whether the server, or what connects to it, is gone."""
    from mcp.types import CONNECTION_CLOSED

    return getattr(error, "code", None) == CONNECTION_CLOSED


def _line(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "…"


class _Tail:
    """The end of what a server writes on stderr, read as it comes: it is kept off the terminal, and fills no disk."""

    def __init__(self) -> None:
        self._kept = b""
        self._descriptor = -1

    def open(self) -> int:
        """The descriptor to write to, which is the caller's to close."""
        self._descriptor, write = os.pipe()
        os.set_blocking(self._descriptor, False)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        return write

    def _read(self) -> None:
        with suppress(BlockingIOError):
            if data := os.read(self._descriptor, 1 << 16):
                self._kept = (self._kept + data)[-TAIL:]
            else:
                asyncio.get_running_loop().remove_reader(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            self._read()
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def last_line(self) -> str:
        lines = [line for line in self._kept.decode(errors="replace").splitlines() if line.strip()]
        return _line(lines[-1]) if lines else ""
