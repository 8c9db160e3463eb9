"""`listen`: an app on a port, from its first request to the last answer after the signal to stop."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from .address import taken
from .connection import Connection
from .settings import Settings

_log = logging.getLogger(__name__)

STOPPING = (signal.SIGINT, signal.SIGTERM)
# Seconds in which answers that were ended are told to be.
LAST_WORDS = 2
# Seconds in which an error of the event loop is not told again.
QUIET = 10.0
# Connections that may wait to be accepted; asyncio accepts, and fails to, as many at once.
BACKLOG = 128


class Served(Protocol):
    """What is begun and ended with the server."""

    def start(self) -> None:
        """Begin, in the running event loop."""
        ...

    async def close(self, grace_seconds: float) -> None:
        """Take nothing more on, and end what is not over within the grace."""
        ...


def listen(
    app: ASGIApp, service: Served, listening: socket.socket, settings: Settings, *, ready: Callable[[], None]
) -> None:
    """Serve until a signal to stop, and then until the running answers are finished or the grace is over.

    ready: called once requests are answered. A second signal ends the process at once. InputError if the port was
    taken meanwhile.
    """

    class Configured(Connection):
        read_timeout, write_timeout = settings.read_timeout, settings.write_timeout

    config = uvicorn.Config(
        app,
        http=Configured,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=max(round(settings.idle_timeout), 1),
        timeout_graceful_shutdown=round(settings.grace) + LAST_WORDS,
    )
    try:
        listening.listen(config.backlog)
    except OSError as error:
        raise taken(settings, error) from None
    _Listener(config, service, ready=ready, grace=settings.grace).run([listening])


class Troubles:
    """In place of asyncio's handler, which prints a traceback; one kind of error is told once in a while.

    Where no file descriptors are left, asyncio tells so thousands of times a second.
    """

    def __init__(self) -> None:
        self._quiet_until: dict[type, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if loop.time() >= self._quiet_until.get(type(error), 0.0):
            self._quiet_until[type(error)] = loop.time() + QUIET
            _log.error(context["message"], exc_info=error)


class _Listener(uvicorn.Server):
    """uvicorn's, which begins and ends the service, and whose second signal is obeyed by the system."""

    def __init__(self, config: uvicorn.Config, service: Served, *, ready: Callable[[], None], grace: float) -> None:
        super().__init__(config)
        self._service, self._ready, self._grace = service, ready, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(Troubles())
        self._service.start()
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self._service.close(self._grace))
        await super().shutdown(sockets)
        await closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.should_exit = True
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
