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
        timeout_keep_alive=max(round(settings.idle_timeout), 1),
        timeout_graceful_shutdown=round(settings.grace) + LAST_WORDS,
    )
    try:
        listening.listen(config.backlog)
    except OSError as error:
        raise taken(settings, error) from None
    _Listener(config, service, ready=ready, grace=settings.grace).run([listening])


def _log_trouble(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """In place of asyncio's, which prints a traceback: no file descriptors left, for instance."""
    _log.error(context["message"], exc_info=context.get("exception"))


class _Listener(uvicorn.Server):
    """uvicorn's, which begins and ends the service, and whose second signal is obeyed by the system."""

    def __init__(self, config: uvicorn.Config, service: Served, *, ready: Callable[[], None], grace: float) -> None:
        super().__init__(config)
        self._service, self._ready, self._grace = service, ready, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_log_trouble)
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
