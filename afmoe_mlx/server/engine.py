"""`Engine`: the thread that has the model to itself and writes the answers to all requests at once."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import mlx.core as mx
import numpy as np

from .. import device
from ..cache import PrefixStore
from ..generation import BatchAnswer, BatchAnswers, GenerationChunk
from ..models import CausalLM
from ..tokenizer import Tokenizer
from .errors import RequestError
from .failures import failure, unavailable
from .question import TokenLogprob
from .rendering import Rendered

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """A token of one of a job's answers."""

    index: int
    token: int
    text: str
    """What became final with it; may be empty."""
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    finish_reason: str | None = None
    stop: str | None = None
    violation: str | None = None
    logprob: TokenLogprob | None = None


@dataclass(eq=False)
class Job:
    """A request on its way through the engine; its answers are numbered as its questions are."""

    questions: Sequence[Rendered]
    owner: str
    tell: Callable[[Piece | RequestError], None]
    """Called in the event loop's thread."""
    open: int = 0
    """Answers that are not over."""
    is_over: bool = False


@dataclass(frozen=True)
class EngineState:
    """What the engine is doing."""

    is_alive: bool
    """Whether its thread runs and gets on with what there is to do."""
    is_loaded: bool
    """Whether the weights are in memory."""
    seconds_since_step: float
    """Since it last got on, while there is something to do; else 0."""
    running: int
    """Rows: answers that are being written, or whose prompts are being read."""
    waiting: int
    """Requests that have not been begun."""
    cache_bytes: int
    """Keys and values of the rows."""
    store_bytes: int
    """Those of prefixes kept in memory."""
    failures: int
    """How often it was built anew."""


# Seconds without a step after which it is not believed to get on.
STALLED = 120.0

Delivery = list[tuple[Job, Piece | RequestError]]


class Engine:
    """Answers jobs in a thread of its own. All methods but those with an underscore are for any thread."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        deliver: Callable[[Delivery], None],
        max_rows: int,
        make_store: Callable[[CausalLM], PrefixStore | None],
    ) -> None:
        """deliver: called in this thread with what came of a step."""
        self._model, self._tokenizer, self._deliver = model, tokenizer, deliver
        self._max_rows, self._make_store = max_rows, make_store
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: list[Job] = []
        self._rows: dict[BatchAnswer, tuple[Job, int]] = {}
        self._told: Delivery = []
        self._store: PrefixStore | None = None
        self._answers: BatchAnswers | None = None
        self._failures = 0
        self._bytes = (0, 0)
        self._stepped: float | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Answer a job, when its turn comes."""
        self._commands.put(lambda: self._waiting.append(job))

    def cancel(self, job: Job) -> None:
        """End a job before its time: what it holds is free within a step."""
        self._commands.put(lambda: self._end(job))

    def stop(self) -> None:
        """End all jobs and the thread."""
        self._commands.put(self._stop)

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def state(self) -> EngineState:
        stepped = self._stepped
        since = 0.0 if stepped is None else time.perf_counter() - stepped
        return EngineState(
            is_alive=self._thread.is_alive() and since < STALLED,
            is_loaded=True,
            seconds_since_step=since,
            running=len(self._rows),
            waiting=len(self._waiting),
            cache_bytes=self._bytes[0],
            store_bytes=self._bytes[1],
            failures=self._failures,
        )

    def _run(self) -> None:
        self._build()
        while not self._is_stopping:
            self._obey(wait=True)
            with device.resident():
                while (self._waiting or self._rows) and not self._is_stopping:
                    self._stepped = time.perf_counter()
                    self._turn()
                    self._obey(wait=False)
            self._stepped = None

    def _build(self) -> None:
        self._store = self._make_store(self._model)
        self._answers = BatchAnswers(self._model, self._tokenizer, max_rows=self._max_rows, store=self._store)

    def _turn(self) -> None:
        assert self._answers is not None
        while self._waiting:
            self._begin(self._waiting.pop(0))
        for answer, made in self._answers.step():
            job, index = self._rows[answer]
            if isinstance(made, Exception):
                self._fail(job, failure(made))
                continue
            if made.finish_reason:
                del self._rows[answer]
                job.open -= 1
                job.is_over = not job.open
            self._told.append((job, self._piece(index, made, job.questions[index].top_logprobs)))
        self._hand_over()

    def _begin(self, job: Job) -> None:
        assert self._answers is not None
        for index, question in enumerate(job.questions):
            try:
                answer = self._answers.add(question.prompt, **question.options)
            except Exception as error:
                self._fail(job, failure(error))
                return
            self._rows[answer] = job, index
        job.open = len(job.questions)

    def _piece(self, index: int, chunk: GenerationChunk, top: int | None) -> Piece:
        return Piece(
            index,
            chunk.token,
            chunk.text,
            prompt_tokens=chunk.prompt_tokens,
            cached_tokens=chunk.cached_tokens,
            generation_tokens=chunk.generation_tokens,
            finish_reason=chunk.finish_reason,
            stop=chunk.stop,
            violation=chunk.violation,
            logprob=None if top is None else self._logprob(chunk, top),
        )

    def _logprob(self, chunk: GenerationChunk, top: int) -> TokenLogprob:
        """A token's log-probability and those of the likeliest in its place."""
        values, told = chunk.logprobs, list[TokenLogprob]()
        if top:
            likeliest = mx.argpartition(-values, kth=min(top, values.size) - 1)[:top]
            tokens, logprobs = np.array(likeliest), np.array(values[likeliest])
            order = np.argsort(-logprobs, kind="stable")
            pairs = zip(tokens[order].tolist(), logprobs[order].tolist(), strict=True)
            told = [self._told_of(token, logprob) for token, logprob in pairs if logprob > -math.inf]
        return self._told_of(chunk.token, float(np.array(values[chunk.token])), told)

    def _told_of(self, token: int, logprob: float, top: Sequence[TokenLogprob] = ()) -> TokenLogprob:
        return TokenLogprob(token, self._tokenizer.token_bytes(token), logprob, top)

    def _fail(self, job: Job, error: RequestError) -> None:
        if not job.is_over:
            self._told.append((job, error))
        self._end(job)

    def _end(self, job: Job) -> None:
        """Let go of what a job holds."""
        job.is_over = True
        if job in self._waiting:
            self._waiting.remove(job)
        rows = [answer for answer, (owner, _) in self._rows.items() if owner is job]
        for answer in rows:
            del self._rows[answer]
        if rows and self._answers is not None:
            self._answers.remove(*rows)

    def _stop(self) -> None:
        self._is_stopping = True
        for job in {*self._waiting, *(job for job, _ in self._rows.values())}:
            self._fail(job, unavailable("the server is shutting down"))
        self._hand_over()

    def _hand_over(self) -> None:
        told, self._told = self._told, []
        if told:
            self._deliver(told)

    def _obey(self, *, wait: bool) -> None:
        """Do what other threads want; wait: for something, if there is nothing."""
        if wait:
            self._commands.get()()
        with suppress(Empty):
            while True:
                self._commands.get_nowait()()
