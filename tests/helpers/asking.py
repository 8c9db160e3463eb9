"""A `ModelService` in an event loop of a test, and what it answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from afmoe_mlx.messages import Answer
from afmoe_mlx.server.engine.service import ModelService
from afmoe_mlx.server.question import Call, Finish, Question, TokenLogprob

# Seconds in which anything happens, on the slowest machine.
PATIENCE = 20.0


class Heard:
    """What came of one answer."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.logprobs: list[TokenLogprob] = []
        self.finish: Finish | None = None

    @property
    def told(self) -> Finish:
        assert self.finish is not None
        return self.finish


def user(text: str, **question: Any) -> Question:
    """A question of one message."""
    return Question(messages=[{"role": "user", "content": text}], **question)


def call(owner: str = "") -> Call:
    return Call("id", "/v1/chat/completions", owner)


async def heard(service: ModelService, *questions: Question, call: Call | None = None) -> list[Heard]:
    """All that is answered to a request."""
    found = [Heard() for _ in questions]
    async with await service.ask(questions, call or Call("id", "/")) as answers:
        async for update in answers:
            one = found[update.index]
            assert one.finish is None
            for delta in update.deltas:
                one.answer.add(delta)
            one.logprobs += update.logprobs
            one.finish = update.finish
    assert all(one.finish is not None for one in found)
    return found


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


@asynccontextmanager
async def started(service: ModelService) -> AsyncIterator[ModelService]:
    service.start()
    try:
        yield service
    finally:
        await service.close(0)


def run(service: ModelService, test: Callable[[ModelService], Coroutine[Any, Any, Any]]) -> Any:
    """What a test finds out of a service that is started for it."""

    async def all_of_it() -> Any:
        async with started(service):
            return await asyncio.wait_for(test(service), PATIENCE)

    return asyncio.run(all_of_it())
