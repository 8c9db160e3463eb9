"""A `ModelService` in an event loop of a test, and what it answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from afmoe_mlx.cache import PrefixStore
from afmoe_mlx.messages import Answer
from afmoe_mlx.models import CausalLM
from afmoe_mlx.server.engine.service import ModelService
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.question import Call, Finish, Question, TokenLogprob
from afmoe_mlx.tokenizer import Tokenizer

# What a scripted model says.
CALLED = 'Let me see.\n<tool_call>\n{"name": "look", "arguments": {"at": "the sky"}}\n</tool_call>'
THOUGHT = "<think>\nWhat is it?\n</think>\n\nIt is blue."

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


def service(loaded: tuple[CausalLM, Tokenizer], **options: Any) -> ModelService:
    options = {"make_store": lambda model: PrefixStore(model, max_bytes=1 << 20, block_size=16)} | options
    return ModelService(*loaded, name="tiny", **options)


def asked(loaded: tuple[CausalLM, Tokenizer], *questions: Question, **options: Any) -> list[Heard]:
    return run(service(loaded, **options), lambda service: heard(service, *questions))  # type: ignore[no-any-return]


def failed(loaded: tuple[CausalLM, Tokenizer], *questions: Question, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as failure:
        asked(loaded, *questions, **options)
    return failure.value


class Prompted:
    """A long answer that is under way."""

    def __init__(self, service: ModelService, **options: Any) -> None:
        self.service, self.call = service, call()
        self.question = user("again", options={"max_tokens": 10_000} | options)
        self.task = asyncio.ensure_future(heard(service, self.question, call=self.call))

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def steps() -> None:
    """Let the engine make some."""
    await asyncio.sleep(0.03)
