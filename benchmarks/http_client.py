"""A small HTTP client over asyncio's streams: what a client costs should not be what is measured.

One connection a request, which a caller may also leave in the middle, or read as slowly as it likes.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

HOST = "127.0.0.1"


class Event(NamedTuple):
    """A server-sent event: its name, "" if it has none, and its data."""

    name: str
    data: str


@dataclass
class Response:
    """What a server answers: its head is read, its body is still to come."""

    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""
    reader: asyncio.StreamReader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes; IncompleteReadError where it is cut off."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readuntil(b"\r\n")
        elif (length := self.headers.get("content-length")) is not None:
            yield await self.reader.readexactly(int(length))
        else:
            while piece := await self.reader.read(1 << 16):
                yield piece

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def json(self) -> Any:
        return json.loads(await self.read())

    async def events(self) -> AsyncIterator[Event]:
        """Server-sent events, without comments; ValueError where the last has no end."""
        left = b""
        async for piece in self.pieces():
            *whole, left = (left + piece).split(b"\n\n")
            for lines in whole:
                fields = (line.partition(": ") for line in lines.decode().split("\n"))
                found = {name: value for name, _, value in fields}
                if "data" in found:
                    yield Event(found.get("event", ""), found["data"])
        if left.strip():
            raise ValueError(f"an event without an end: {left[-80:]!r}")


@asynccontextmanager
async def request(
    port: int,
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    limit: int = 1 << 16,
) -> AsyncIterator[Response]:
    """Send a request and read the answer's head; the connection is closed at the end of the block.

    body: bytes as they are, anything else as JSON. limit: how many bytes the client takes before they are read.
    """
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1",
        *(f"{k}: {v}" for k, v in ({"host": f"{HOST}:{port}", "connection": "close"} | dict(headers or {})).items()),
        *([] if body is None else ["content-type: application/json", f"content-length: {len(content)}"]),
    ]
    reader, writer = await asyncio.open_connection(HOST, port, limit=limit)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        yield await read_head(reader)
    finally:
        writer.transport.abort()  # at once, whatever has not been read


async def read_head(reader: asyncio.StreamReader) -> Response:
    """The status and the headers that a server sends; IncompleteReadError if it sends none."""
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    fields = (line.partition(":") for line in rest)
    return Response(int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}, reader)
