"""`Exchange`: a request on its way and what goes back to its client."""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from ..endpoint import EventStream
from ..errors import RequestError
from ..question import Call
from ..sse import compact_json
from .watching import send_events

# Proxies hold back no event of these.
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-store",
    "x-accel-buffering": "no",
}


class Exchange:
    """One request and its response; `status` is None until that has begun."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, call: Call, headers: Mapping[str, str]) -> None:
        """headers: of any response."""
        self.scope, self.receive, self.call = scope, receive, call
        self.headers = Headers(scope=scope)
        self.status: int | None = None
        self._send = send
        self._common = {**headers, "x-request-id": call.id, "request-id": call.id}  # as OpenAI and Anthropic call it

    async def json(self, status: int, value: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        """Respond with an object."""
        await self.bytes(status, compact_json(value).encode(), {"content-type": "application/json", **(headers or {})})

    async def bytes(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Respond with what is complete."""
        length = {} if status in (204, 304) else {"content-length": str(len(body))}
        await self._start(status, {**headers, **length})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def stream(self, stream: EventStream) -> None:
        """Respond with events as they come."""
        await self._start(200, STREAM_HEADERS)
        await send_events(stream.events, stream.alive, self._send_event)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_event(self, event: str) -> None:
        await self._send({"type": "http.response.body", "body": event.encode(), "more_body": True})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        raw = [
            (name.encode(), value.encode("latin-1", "replace")) for name, value in {**headers, **self._common}.items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


class MethodError(RequestError):
    """A method that a path is not for."""

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(405, f"{method[:20]} is not for this path: expected {allowed}", code="method_not_allowed")
        self.allowed = allowed


def error_headers(error: RequestError) -> dict[str, str]:
    """What the response to a request without an answer tells beside its body."""
    found = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if isinstance(error, MethodError):
        found["allow"] = error.allowed
    match error.status:
        case 401:
            found["www-authenticate"] = "Bearer"
        case 408:  # whereas of a request that is too large the rest is read, so that its client sees why
            found["connection"] = "close"
        case 426:
            found |= {"upgrade": "HTTP/1.1", "connection": "upgrade"}
    return found
