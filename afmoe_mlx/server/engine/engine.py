"""`Engine`: the thread that has the model to itself and answers all requests at once."""

import gc
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import mlx.core as mx

from ... import device
from ..errors import RequestError, failure, unavailable
from .admission import Held, Memory, Queue
from .jobs import Delivery, Job
from .writer import Writer

_log = logging.getLogger(__name__)

# Steps between two looks at what caches hold, where no row comes or goes.
COUNT_EVERY = 32


@dataclass(frozen=True)
class EngineState:
    """What the engine is doing."""

    is_alive: bool
    """Whether its thread runs and gets on with what there is to do."""
    is_loaded: bool
    """Whether the weights are in memory."""
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


class Engine:
    """Answers jobs in a thread of its own. `start`, `submit`, `cancel`, `stop`, `join` and `state` are for any thread.

    Where the model itself fails, all jobs that have been begun fail with it, it is built anew from the loaded weights,
    and goes on with those that wait.
    """

    def __init__(
        self,
        build: Callable[[Callable[[], None]], Writer],
        *,
        deliver: Callable[[Delivery], None],
        memory: Memory,
        max_rows: int,
        max_queue: int,
        stalled: float,
        idle_unload: float | None = None,
        unload: Callable[[], None] = lambda: None,
    ) -> None:
        """build: makes what writes answers, with its `on_layer`; called in the thread, again after `unload`, once
        `idle_unload` seconds have passed without a job. deliver: called there with what came of a step. max_rows:
        answers that are written at once. max_queue: requests of an owner that may wait. stalled: seconds without a
        step, or a layer of one, after which it is not believed to get on.
        """
        self._build, self._unload, self._idle_unload = build, unload, idle_unload
        self._deliver, self._memory, self._max_rows = deliver, memory, max_rows
        self._stalled = stalled
        self._queue = Queue(max_waiting=max_queue)
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._writer: Writer | None = None
        self._failures = self._turns = self._counted = 0
        self._stepped: float | None = None  # when it last got on, while there is something to do
        self._is_stopping = self._is_over = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Answer a job when its turn comes; RequestError if too many wait."""
        self._queue.put(job)
        self._commands.put(lambda: None)
        if self._is_over and self._queue.take(job):
            raise unavailable("the engine is not running")

    def cancel(self, job: Job, index: int | None = None) -> None:
        """End a job before its time, or one of its answers: what it holds is free within a step."""
        if index is None and self._queue.take(job):
            job.is_over = True
        else:
            self._commands.put(lambda: self._end(job, index))

    def stop(self) -> None:
        """End all jobs and the thread."""
        self._commands.put(self._stop)

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def state(self) -> EngineState:
        """What it is doing, now."""
        stepped, held, writer = self._stepped, self._memory.held, self._writer
        since = 0.0 if stepped is None else time.perf_counter() - stepped
        return EngineState(
            is_alive=self._thread.is_alive() and since < self._stalled,
            is_loaded=writer is not None,
            running=0 if writer is None else writer.rows,
            waiting=len(self._queue),
            cache_bytes=held.rows,
            store_bytes=held.store,
            failures=self._failures,
        )

    def _run(self) -> None:
        """All that the thread does."""
        try:
            self._load()
            while not self._is_stopping:
                self._rest()
                with device.resident():
                    while self._has_work:
                        self._stepped = time.perf_counter()
                        self._turn()
                self._stepped = None
        except BaseException:
            _log.exception("the engine's thread has ended")
        finally:
            self._is_over = True
            jobs = self._jobs
            self._let_go()
            self._fail(unavailable("the engine is not running"), *jobs, *self._queue.clear())

    @property
    def _has_work(self) -> bool:
        is_writing = self._writer is not None and self._writer.rows > 0
        return not self._is_stopping and (is_writing or len(self._queue) > 0)

    @property
    def _jobs(self) -> list[Job]:
        """Those that have been begun."""
        return [] if self._writer is None else self._writer.jobs

    def _rest(self) -> None:
        """Wait until there is something to do; let go of the weights if that takes long."""
        mx.clear_cache()
        while not self._has_work and not self._is_stopping:
            try:
                self._commands.get(timeout=None if self._writer is None else self._idle_unload)()
            except Empty:
                self._let_go()

    def _get_on(self) -> None:
        """In the midst of a long step: say that it gets on, and let go of what nobody waits for any more."""
        self._stepped = time.perf_counter()
        self._obey()

    def _obey(self) -> None:
        """Do what other threads want."""
        with suppress(Empty):
            while True:
                self._commands.get_nowait()()

    def _turn(self) -> None:
        """Begin what there is room for, and make a step."""
        if self._writer is None and not self._load():
            self._fail(unavailable("the model could not be loaded"), *self._queue.clear())
            return
        try:
            assert self._writer is not None
            self._obey()
            self._admit(self._writer)
            if self._writer.rows:
                self._deliver(self._writer.step())
            self._count(self._writer)
            return
        except Exception:
            _log.exception("the model failed: the engine is built anew")
        self._failures += 1
        jobs = self._jobs
        self._let_go(weights=False)
        self._fail(unavailable("the model failed: ask again"), *jobs)
        self._load()

    def _admit(self, writer: Writer) -> None:
        """Begin jobs in their turn, as long as there is room for the next."""
        while (job := self._queue.next(running := writer.jobs)) is not None:
            if running and writer.rows + job.rows > self._max_rows:
                return
            self._memory.held = writer.held
            fits = self._memory.has_room([*running, job])  # which asks the system, and so takes its time
            if running and not fits:
                return
            if not self._queue.take(job):  # it was cancelled
                continue
            if not fits:
                self._fail(unavailable("other programs have taken the memory that this request needs"), job)
                continue
            try:
                writer.begin(job)
            except Exception as error:
                self._fail(failure(error), job)

    def _count(self, writer: Writer) -> None:
        """Tell others what is held, now and then."""
        self._turns += 1
        if writer.rows != self._counted or self._turns % COUNT_EVERY == 0:
            self._counted, self._memory.held = writer.rows, writer.held

    def _load(self) -> bool:
        """Make the writer; whether there is one."""
        stepped, self._stepped = self._stepped, None  # this may take its time
        try:
            self._writer = self._build(self._get_on)
        except Exception:
            _log.exception("the model could not be loaded")
            return False
        self._stepped = stepped
        self._memory.held, self._memory.at_rest = self._writer.held, None
        return True

    def _let_go(self, *, weights: bool = True) -> None:
        """Of the writer with all that it holds, and of the weights."""
        if weights:
            self._memory.at_rest = self._memory.most
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.flush()
            del writer
        self._memory.held = Held()
        if weights:
            self._unload()
        gc.collect()
        mx.clear_cache()

    def _end(self, job: Job, index: int | None = None) -> None:
        job.is_over = job.is_over or index is None
        if self._writer is not None:
            self._writer.end(job, index)
            self._count(self._writer)

    def _fail(self, error: RequestError, *jobs: Job) -> None:
        for job in jobs:
            self._end(job)
        if jobs:
            self._deliver([(job, error) for job in jobs])

    def _stop(self) -> None:
        self._is_stopping = True
        self._fail(unavailable("the server is shutting down"), *self._jobs, *self._queue.clear())
