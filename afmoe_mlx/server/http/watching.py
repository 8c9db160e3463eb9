"""Work that ends when whoever asked goes away, and streams that give signs of life while there is nothing to tell."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.types import Receive

from .reading import ClientGoneError

T = TypeVar("T")

# Seconds of silence after which a stream gives a sign of life.
SILENCE = 5.0


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, or raises. Once the client goes away, it is cancelled and ended, and ClientGoneError raised.

    receive: of a request whose body was read: what comes next is that its client has gone.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        await _end(working)
        await _end(gone)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_events(
    events: AsyncIterator[str],
    alive: Callable[[], str],
    send: Callable[[str], Awaitable[None]],
    *,
    silence: float = SILENCE,
) -> None:
    """Send all events, and a sign of life whenever there was none for `silence` seconds; close them at the end."""
    now = asyncio.get_running_loop().time
    told = now()

    async def beat() -> None:
        nonlocal told
        while True:
            await asyncio.sleep(told + silence - now())
            if now() - told >= silence:
                told = now()
                await send(alive())

    beating = asyncio.create_task(beat())
    try:
        async for event in events:
            told = now()
            await send(event)
    finally:
        await _end(beating)
        if close := getattr(events, "aclose", None):
            await close()


async def _end(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait until it is over; what it gives is nobody's any more."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
