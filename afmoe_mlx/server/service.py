"""`ModelService`: the model that is served, asked from an event loop, answered by an `Engine`."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ..cache import PrefixStore
from ..generation import MAX_ROWS
from ..models import CausalLM
from ..tokenizer import Tokenizer
from .answering import Answers
from .engine import Delivery, Engine, EngineState, Job
from .errors import RequestError
from .failures import failure, unavailable
from .question import Call, Question
from .rendering import Rendered, Renderer

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Tokens of an answer, unless its question says how many it may have.
MAX_TOKENS = 4096


class ModelService:
    """The `question.Service` of a model. All but `state` is for the event loop that `start` is called in."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        name: str,
        max_rows: int = MAX_ROWS,
        max_tokens: int = MAX_TOKENS,
        template_variables: Mapping[str, Any] | None = None,
        make_store: Callable[[CausalLM], PrefixStore | None] = PrefixStore,
    ) -> None:
        """max_rows: answers that are written at once. max_tokens, template_variables: of a question that says nothing
        of them.

        make_store: makes the store of prefixes that the model's prompts begin with, or none.
        """
        self.name, self.created = name, int(time.time())
        self.context = model.config.max_position_embeddings
        self._tokenizer = tokenizer
        self._renderer = Renderer(
            tokenizer,
            context=self.context,
            vocab_size=model.config.vocab_size,
            max_tokens=max_tokens,
            template_variables=template_variables or {},
        )
        self._engine = Engine(model, tokenizer, deliver=self._deliver, max_rows=max_rows, make_store=make_store)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers = ThreadPoolExecutor(2, "render")
        self._jobs: set[Job] = set()
        self._is_closing = False

    def start(self) -> None:
        """Begin to answer, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._engine.start()

    async def close(self, grace_seconds: float) -> None:
        """Take no more requests, let those under way end within a time, and end the others."""
        self._is_closing = True
        ends = time.perf_counter() + grace_seconds
        while self._jobs and time.perf_counter() < ends:
            await asyncio.sleep(0.02)
        self._engine.stop()
        await asyncio.to_thread(self._engine.join, 10.0)
        self._workers.shutdown(wait=False, cancel_futures=True)

    def state(self) -> EngineState:
        """What the engine is doing, now."""
        return self._engine.state()

    async def ask(self, questions: Sequence[Question], call: Call) -> Answers:
        """Take questions on, once they are rendered and checked. RequestError if they are not."""
        try:
            return await self._ask(questions, call)
        except RequestError as error:
            call.reason, call.seconds = error.code or str(error.status), time.perf_counter() - call.began
            raise

    async def count_tokens(self, question: Question) -> int:
        """Tokens of a question's prompt. RequestError if it can be none."""
        return await self._work(partial(self._renderer.count, question))

    async def _ask(self, questions: Sequence[Question], call: Call) -> Answers:
        self._check_open()
        rendered = await self._work(partial(self._render, questions))
        self._check_open()
        answers = Answers(rendered, self._tokenizer, call, cancel=self._cancel)
        self._jobs.add(answers.job)
        self._engine.submit(answers.job)
        return answers

    def _render(self, questions: Sequence[Question]) -> list[Rendered]:
        return [self._renderer.render(question) for question in questions]

    async def _work(self, work: Callable[[], T]) -> T:
        """Do something beside the event loop; RequestError for what it raises."""
        assert self._loop is not None
        try:
            return await self._loop.run_in_executor(self._workers, work)
        except Exception as error:
            told = failure(error)
            if told.status >= 500:
                _log.exception("a request could not be read")
            raise told from error

    def _check_open(self) -> None:
        if self._is_closing:
            raise unavailable("the server is shutting down")
        if not self.state().is_alive:
            raise unavailable("the engine is not running")

    def _deliver(self, told: Delivery) -> None:
        """In the engine's thread: hand over what came of a step."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell, told)

    def _tell(self, told: Delivery) -> None:
        for job, what in told:
            job.tell(what)
            if job.is_over:
                self._jobs.discard(job)

    def _cancel(self, job: Job) -> None:
        self._jobs.discard(job)
        self._engine.cancel(job)
