"""The MCP servers of one chat, in a thread of their own: the package `mcp` is asynchronous, the chat is not."""

import asyncio
import importlib.metadata
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from types import TracebackType
from typing import Any, Self

from afmoe_mlx.errors import InputError

from .mcp_server import McpServer
from .results import ToolResult, unavailable
from .server_file import ServerConfig

START_SECONDS = 30.0  # some fetch themselves first
CALL_SECONDS = 60.0
END_SECONDS = 8.0  # more than `mcp` takes to end a server that will not: it asks, waits, and kills the whole group
LEAST_VERSION = 2  # of the package


class McpClient:
    """MCP servers from their start to their end; used as a context manager around the chat.

    They start side by side while the caller does something else; `wait` returns once each is there or has failed, and
    its trouble says why. InputError, before any is started, where the package is missing.
    """

    def __init__(
        self,
        configs: Sequence[ServerConfig],
        *,
        start_seconds: float = START_SECONDS,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        check_installed()
        self.servers = {config.name: McpServer(config) for config in configs}
        self._start_seconds, self._call_seconds = start_seconds, call_seconds
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="afmoe-mlx mcp", daemon=True)

    def __enter__(self) -> Self:
        # what is logged may hold what servers write, and the terminal is not theirs
        for name in ("mcp", "client", "asyncio"):
            logging.getLogger(name).addHandler(logging.NullHandler())
        self._loop = asyncio.new_event_loop()
        self._life = self._loop.create_task(self._live())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all servers, those that are being started too, and what they have started."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._life.cancel)
            self._thread.join(END_SECONDS)

    def wait(self, seconds: float | None = None) -> bool:
        """Return once every server can be called, or has failed, or after so many seconds; False for the last."""
        return self._ready.wait(seconds)

    def call(self, server: str, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        """The result of a call of a server's tool, also of one that fails. Ctrl-C cancels the call and is raised.

        To be called once `wait` has returned.
        """
        found = self.servers[server]
        if found.trouble:
            return unavailable(server, found.trouble)
        call = found.call(tool, arguments, self._call_seconds)
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _run(self) -> None:
        with closing(self._loop), suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._life)

    async def _live(self) -> None:
        try:
            import mcp  # noqa: F401 - a second that no server's time to start is charged with
        except ImportError as error:
            for server in self.servers.values():
                server.trouble = f"the package mcp cannot be imported: {error}"
            self._ready.set()
            return
        async with asyncio.TaskGroup() as group:
            events = []
            for server in self.servers.values():
                if not server.config.refusal:
                    events.append(asyncio.Event())
                    group.create_task(server.live(events[-1], self._start_seconds))
            for event in events:
                await event.wait()
            self._ready.set()
            await asyncio.Event().wait()  # until it is cancelled


def check_installed() -> None:
    """InputError if the package `mcp` is not there, or too old; it is not imported."""
    fix = 'pip install "afmoe-mlx[mcp]" installs it'
    try:
        version = importlib.metadata.version("mcp")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"MCP servers need the package mcp: {fix}") from None
    if int(version.split(".")[0]) < LEAST_VERSION:
        raise InputError(f"MCP servers need the package mcp {LEAST_VERSION} or later, found {version}: {fix}")
