"""An ASGI app asked in this process: requests with whatever is wrong with them, clients that go away."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HEADERS = {"host": "127.0.0.1:8080", "content-type": "application/json"}


@dataclass
class Response:
    """What came back; status None: nothing did."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    is_whole: bool = False

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> Any:
        return self.json["error"]


def ask(app: Any, method: str, path: str, body: Any = None, **more: Any) -> Response:
    """What `asked` gives, in an event loop of its own."""
    return asyncio.run(asked(app, method, path, body, **more))


async def asked(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    *,
    chunks: Sequence[bytes] | None = None,
    stays: float | None = None,
    **headers: str | None,
) -> Response:
    """One request and its response.

    body: bytes, or what is sent as JSON. chunks: the body in pieces instead; if the last is empty, no more comes.
    stays: seconds after which the client goes away. headers: with _ for -; None leaves one out.
    """
    response = Response()
    if chunks is None:
        chunks = [body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()]
    ends = [*([True] * (len(chunks) - 1)), chunks[-1] == b"" and len(chunks) > 1]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": more} for chunk, more in zip(chunks, ends, strict=True)
    ]

    async def receive() -> Mapping[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(3600 if stays is None else stays)
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            response.status = message["status"]
            response.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            response.pieces.append(message["body"])
            response.is_whole = not message.get("more_body", False)

    sent = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in sent.items() if value is not None]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b"", "root_path": ""}
    await app(scope, receive, send)
    return response
