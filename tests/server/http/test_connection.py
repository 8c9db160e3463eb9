"""Clients that send or read too slowly are left, and their answers ended; the others are not waited for."""

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from afmoe_mlx.server.http.connection import Connection

POST = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\n"


class Hasty(Connection):
    read_timeout = write_timeout = 0.1


class Torrent:
    """An ASGI app that writes until its client goes away, or one word, and reads what there is to read."""

    def __init__(self, *, reads: bool = True, endless: bool = False) -> None:
        self.reads, self.endless = reads, endless
        self.left = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = self.reads
        while more:
            more = (await receive()).get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        writing = asyncio.ensure_future(self._write(send))
        if self.endless:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, send: Any) -> None:
        while self.endless:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": b"done", "more_body": False})


@asynccontextmanager
async def listening(app: Any) -> Any:
    """The port of an app."""
    config = uvicorn.Config(app, http=Hasty, ws="none", lifespan="off", log_config=None, log_level="critical")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Hasty(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()


def with_client(make: Callable[[], Torrent], use: Callable[[Torrent, Any, Any], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        app = make()
        async with asyncio.timeout(20), listening(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            try:
                await use(app, reader, writer)
            finally:
                writer.transport.abort()

    asyncio.run(main())


def test_headers_that_do_not_come_to_their_end() -> None:
    async def silent(app: Torrent, reader: Any, writer: Any) -> None:
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")

    async def slow(app: Torrent, reader: Any, writer: Any) -> None:
        async def trickle() -> None:
            for byte in POST * 100:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        assert (await reader.read(100)).startswith(b"HTTP/1.1 408 ")
        trickling.cancel()

    with_client(Torrent, silent)
    with_client(Torrent, slow)


def test_a_connection_is_kept_between_whole_requests_and_each_has_its_time() -> None:
    async def twice(app: Torrent, reader: Any, writer: Any) -> None:
        for _ in range(2):
            writer.write(POST + b"body")
            assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.15)
        writer.write(POST[:20])
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")

    with_client(Torrent, twice)


def test_the_rest_of_a_request_that_is_answered_already_is_not_waited_for() -> None:
    async def half(app: Torrent, reader: Any, writer: Any) -> None:
        writer.write(POST + b"bo")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"done" in answer

    with_client(lambda: Torrent(reads=False), half)


def test_the_rest_of_a_request_that_is_answered_already_is_read_and_the_next_is_answered() -> None:
    async def late(app: Torrent, reader: Any, writer: Any) -> None:
        now = asyncio.get_running_loop().time
        ends = now() + 2 * Hasty.read_timeout
        while now() < ends:
            writer.write(POST)
            assert b"done" in await reader.readuntil(b"0\r\n\r\n")
            await asyncio.sleep(Hasty.read_timeout / 10)
            writer.write(b"body")

    with_client(lambda: Torrent(reads=False), late)


def test_what_is_no_http_is_refused_in_json() -> None:
    async def mumble(app: Torrent, reader: Any, writer: Any) -> None:
        writer.write(b"\x16\x03\x01 hello?\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == "invalid_http"

    with_client(Torrent, mumble)


def test_a_client_that_does_not_read_is_left() -> None:
    async def deaf(app: Torrent, reader: Any, writer: Any) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.write(POST + b"body")
        await app.left.wait()

    async def keen(app: Torrent, reader: Any, writer: Any) -> None:
        writer.write(POST + b"body")
        now = asyncio.get_running_loop().time
        ends = now() + 3 * Hasty.write_timeout
        while now() < ends:
            assert await reader.read(65536)
        assert not app.left.is_set()

    with_client(lambda: Torrent(endless=True), deaf)
    with_client(lambda: Torrent(endless=True), keen)
