"""`Connection`: uvicorn's, with an end to clients that send or read too slowly."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


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
        self._reading = self.loop.call_later(self.read_timeout, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._reading, self._writing)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop(self._reading)
            self._reading = None
        elif self._reading is None:
            self._reading = self.loop.call_later(self.read_timeout, self._too_slow)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self._writing)

    def _too_slow(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.write(SLOW)
            self.transport.close()
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.close()  # what is left of a request that was answered without it

    @staticmethod
    def _stop(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()
