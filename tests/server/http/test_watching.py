"""Work that ends with its client, and streams that are never silent for long."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.server.http.reading import ClientGoneError
from afmoe_mlx.server.http.watching import send_events, until_gone


def sent(pauses: list[float], *, silence: float) -> list[str]:
    """What a stream sends that gives an event after each of some pauses."""
    found: list[str] = []

    async def events() -> AsyncIterator[str]:
        for i, pause in enumerate(pauses):
            await asyncio.sleep(pause)
            yield str(i)

    async def send(event: str) -> None:
        found.append(event)

    asyncio.run(send_events(events(), lambda: "alive", send, silence=silence))
    return found


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.03]), max_size=3))
def test_silence_alone_is_broken_and_no_event_lost(pauses: list[float]) -> None:
    found = sent(pauses, silence=0.01)
    assert [event for event in found if event != "alive"] == [str(i) for i in range(len(pauses))]
    assert ("alive" in found) == (0.03 in pauses)
    assert "alive" not in sent(pauses, silence=60)


async def present() -> Mapping[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError


async def leaving() -> Mapping[str, Any]:
    return {"type": "http.disconnect"}


def test_work_that_is_done_first_is_what_counts() -> None:
    async def work() -> int:
        return 5

    async def failing() -> int:
        raise KeyError

    assert asyncio.run(until_gone(present, work())) == 5
    with pytest.raises(KeyError):
        asyncio.run(until_gone(present, failing()))


def test_a_client_that_leaves_ends_the_stream_that_was_for_it() -> None:
    closed: list[str] = []

    async def events() -> AsyncIterator[str]:
        try:
            while True:
                yield "event"
        finally:
            await asyncio.sleep(0)
            closed.append("events")

    async def send(event: str) -> None:
        await asyncio.sleep(60)  # a reader that has stopped reading

    async def until_it_leaves() -> list[str]:
        with pytest.raises(ClientGoneError):
            await until_gone(leaving, send_events(events(), str, send))
        return closed.copy()

    assert asyncio.run(until_it_leaves()) == ["events"]


def test_whoever_ends_the_request_from_outside_ends_its_work() -> None:
    ended: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def cancelled() -> None:
        task = asyncio.create_task(until_gone(present, work()))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert ended == [True]
