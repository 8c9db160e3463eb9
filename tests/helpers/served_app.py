"""An app in front of a browser: on a port of loopback, in a thread of its own."""

import asyncio
import threading
from functools import partial
from typing import Any, Self

import uvicorn
from uvicorn.server import ServerState

from afmoe_mlx.server.http.address import bind, url
from afmoe_mlx.server.http.settings import Settings


class ServedApp:
    """Answers from `start` to `stop`, which breaks off what is under way; then again at the same address."""

    def __init__(self, app: Any) -> None:
        self._config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        self._config.load()
        self._socket = bind(Settings())
        self.url = url(self._socket)
        self._port = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(begun)))
        self._thread.start()
        assert begun.wait(20)

    def stop(self) -> None:
        """Does nothing where it is stopped."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()

    async def _serve(self, begun: threading.Event) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        if self._socket.fileno() < 0:
            self._socket = bind(Settings(port=self._port))
        state = ServerState()
        make = partial(self._config.http_protocol_class, config=self._config, server_state=state, app_state={})
        server = await self._loop.create_server(make, sock=self._socket)
        begun.set()
        await self._stopped.wait()
        server.close()
        for connection in state.connections:
            connection.transport.abort()
        await asyncio.gather(*state.tasks)
