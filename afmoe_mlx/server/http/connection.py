"""`Connection`: uvicorn's, with an end to clients that send or read too slowly, and errors in JSON."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from ..errors import RequestError
from ..openai.errors import error_body


class Connection(H11Protocol):
    """One client's connection. Times are in seconds."""

    read_timeout: float
    """Until a request is whole, from when the connection was made or its first byte came."""
    write_timeout: float
    """That a client may leave unread what has been waiting for it."""
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._reading, self._writing)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_answered, cycle = self.conn.our_state is h11.DONE, self.cycle
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop(self._reading)
            self._reading = None
        elif self._reading is None or (was_answered and (self.conn.their_state is h11.IDLE or self.cycle is not cycle)):
            self._await_request()  # the next one

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self._writing)

    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError(400, msg, code="invalid_http"))

    def _await_request(self) -> None:
        self._stop(self._reading)
        self._reading = self.loop.call_later(self.read_timeout, self._too_slow)

    def _too_slow(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._refuse(RequestError(408, "no request came in time", code="request_timeout"))
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.close()  # what is left of a request that was answered without it

    def _refuse(self, error: RequestError) -> None:
        body = json.dumps(error_body(error)).encode()
        head = f"HTTP/1.1 {error.status} {STATUS_PHRASES[error.status].decode()}\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    @staticmethod
    def _stop(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()
