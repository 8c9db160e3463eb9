"""A service whose answers a test writes, piece by piece, while something else reads them."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from afmoe_mlx.messages import ArgumentsDelta, CallEnd, CallStart, ContentDelta, Delta, ReasoningDelta
from afmoe_mlx.server.engine.engine import EngineState
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.question import Call, Finish, Progress, Question, Update
from helpers.asking import PATIENCE
from helpers.fake_app import HEALTHY


class LiveAnswer:
    """An answer under way: what a test says, from any thread, comes at once. A piece is a token."""

    prompt_tokens = 20
    cached_tokens = 8

    def __init__(self, question: Question, call: Call, *, failure: RequestError | None = None) -> None:
        self.question, self.left = question, threading.Event()
        self._call, self._loop = call, asyncio.get_running_loop()
        self._updates: asyncio.Queue[Update | RequestError] = asyncio.Queue()
        self._calls = self._thoughts = 0
        call.prompt_tokens, call.cached_tokens = self.prompt_tokens, self.cached_tokens

    def say(self, *texts: str) -> None:
        for text in texts:
            self._tell(ContentDelta(text))

    def think(self, *texts: str) -> None:
        self._thoughts += len(texts)
        for text in texts:
            self._tell(ReasoningDelta(text))

    def call(self, name: str, arguments: str) -> None:
        index, self._calls = self._calls, self._calls + 1
        self._tell(CallStart(index, name), ArgumentsDelta(index, arguments), CallEnd(index))

    def read(self, read: int, total: int, cached: int = 0) -> None:
        """Of the prompt so many tokens."""
        self.prompt_tokens, self.cached_tokens = total, cached
        self._put(Update(0, progress=Progress(total, cached, read)))

    def end(self, reason: str = "stop") -> None:
        reason = "tool_calls" if self._calls and reason == "stop" else reason
        tokens = self._call.completion_tokens
        self._put(Update(0, finish=Finish(reason, self.prompt_tokens, self.cached_tokens, tokens, self._thoughts)))

    def fail(self, message: str, code: str = "internal_error") -> None:
        self._put(RequestError(503 if code == "unavailable" else 500, message, code=code))

    def wait_until_left(self) -> None:
        """Until its client has gone away, or has it all."""
        assert self.left.wait(PATIENCE)

    def _tell(self, *deltas: Delta) -> None:
        self._call.completion_tokens += 1
        self._put(Update(0, deltas))

    def _put(self, update: Update | RequestError) -> None:
        self._loop.call_soon_threadsafe(self._updates.put_nowait, update)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.left.set()

    async def __aiter__(self) -> AsyncIterator[Update]:
        while True:
            update = await self._updates.get()
            if isinstance(update, RequestError):
                raise update
            yield update
            if update.finish is not None:
                return


@dataclass
class LiveService:
    """Has each question answered by the test, or by the next of `texts` while there are some."""

    texts: list[str] = field(default_factory=list)
    name: str = "maker/tiny"
    created: int = 1_700_000_000
    context: int = 4096
    defaults: Mapping[str, float] = field(default_factory=lambda: {"temperature": 0.5, "max_tokens": 100})
    refusal: RequestError | None = None
    """Of what is asked."""
    _asked: "queue.Queue[LiveAnswer]" = field(default_factory=queue.Queue)
    _answers: list[LiveAnswer] = field(default_factory=list)

    async def ask(self, questions: Sequence[Question], call: Call) -> LiveAnswer:
        if self.refusal is not None:
            raise self.refusal
        answer = LiveAnswer(questions[0], call)
        self._asked.put(answer)
        self._answers.append(answer)
        if self.texts:
            answer.say(self.texts.pop(0))
            answer.end()
        return answer

    async def count_tokens(self, question: Question) -> int:
        return 7

    def state(self) -> EngineState:
        return HEALTHY

    @property
    def asks(self) -> int:
        """Questions so far."""
        return len(self._answers)

    def answer(self) -> LiveAnswer:
        """The answer to the next question, once it is asked."""
        return self._asked.get(timeout=PATIENCE)

    def reset(self) -> None:
        """End what is under way, and forget all that a test has set."""
        for answer in self._answers:
            if not answer.left.is_set():
                answer.end()
                answer.wait_until_left()
        self.__init__()  # type: ignore[misc]
