"""`ModelService`: the model that is served, asked from an event loop, answered by an `Engine`."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten

from ... import device
from ...cache import PrefixStore
from ...errors import InputError
from ...generation import MAX_ROWS, SamplingOptions
from ...models import CausalLM
from ...tokenizer import Tokenizer
from ..errors import failure, unavailable
from ..question import Call, Question
from .admission import Memory
from .answering import Answers
from .engine import Engine, EngineState
from .jobs import Delivery, Job
from .rendering import Renderer
from .writer import Writer

T = TypeVar("T")

# Tokens of an answer, unless its question says how many it may have.
MAX_TOKENS = 4096
# Requests of each owner that may wait.
MAX_QUEUE = 64
# What is told of how an answer is made whose question says nothing of it.
TOLD = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
# Seconds that answers may be delayed by prompts between two steps.
PREFILL_SLICE = 0.25
# Tokens of a block of the prefix store: what a second turn reads anew is less than one, and what is new.
BLOCK_SIZE = 64
# Seconds without a step, or a layer of a long one, after which the engine is not believed to get on, and where it may
# have to wait until other hosts have read all of their experts.
STALLED, STALLED_WAITING = 120.0, 900.0
# Seconds in which the engine's thread ends, once it is told to.
STOPPING = 10.0


def make_store(model: CausalLM, directory: str | Path | None = None) -> PrefixStore:
    """The store of a served model's prefixes. directory: where they are kept on disk too."""
    return PrefixStore(model, directory=directory, block_size=BLOCK_SIZE)


class ModelService:
    """The `question.Service` of a model. All but `state` is for the event loop that `start` is called in."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        name: str,
        max_rows: int = MAX_ROWS,
        max_queue: int = MAX_QUEUE,
        max_tokens: int = MAX_TOKENS,
        prefill_slice: float = PREFILL_SLICE,
        template_variables: Mapping[str, Any] | None = None,
        make_store: Callable[[CausalLM], PrefixStore | None] = make_store,
        idle_unload: float | None = None,
        load: Callable[[], CausalLM] | None = None,
    ) -> None:
        """max_rows: answers that are written at once; 1 where the model does not take more. max_queue: requests that
        wait, of each owner. max_tokens, template_variables: of a question that says nothing of them.

        prefill_slice: seconds that answers may be delayed by prompts between two steps. make_store: makes the store of
        prefixes that the model's prompts begin with, or none. idle_unload: seconds without a request after which the
        weights are let go of, for which nobody else may hold the model; `load` then loads it again.
        """
        if idle_unload is not None and load is None:
            raise InputError("idle_unload needs load: what is to load the model again")
        self.name, self.created = name, int(time.time())
        self.context = model.config.max_position_embeddings
        max_rows = max_rows if model.takes_batches else 1
        self._tokenizer, self._max_rows, self._max_tokens = tokenizer, max_rows, max_tokens
        mx.eval(model.parameters())  # the engine's thread could not evaluate what another has begun
        self._memory = _memory_for(model)
        self._renderer = Renderer(
            tokenizer,
            config=model.config,
            limit=self._memory.limit,
            max_tokens=max_tokens,
            template_variables=template_variables or {},
        )
        self._weights: CausalLM | None = model

        def build(on_layer: Callable[[], None]) -> Writer:
            if self._weights is None:
                assert load is not None
                self._weights = load()
            return Writer(
                self._weights,
                tokenizer,
                make_store(self._weights),
                max_rows=max_rows,
                chunk_seconds=prefill_slice,
                on_layer=on_layer,
            )

        self._engine = Engine(
            build,
            deliver=self._deliver,
            memory=self._memory,
            max_rows=max_rows,
            max_queue=max_queue,
            stalled=STALLED_WAITING if model.reads_experts and model.beyond is not None else STALLED,
            idle_unload=idle_unload,
            unload=self._unload,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers, self._waiters = ThreadPoolExecutor(2, "render"), ThreadPoolExecutor(max_rows, "prepare")
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
        await asyncio.to_thread(self._engine.join, STOPPING)
        for pool in (self._workers, self._waiters):
            pool.shutdown(wait=False)

    @property
    def defaults(self) -> dict[str, float]:
        """Those of the model's generation_config.json, and the tokens that an answer may have."""
        chosen = SamplingOptions.from_generation_config(self._tokenizer.generation_config)
        return {name: getattr(chosen, name) for name in TOLD} | {"max_tokens": self._max_tokens}

    def state(self) -> EngineState:
        """What the engine is doing, now."""
        return self._engine.state()

    async def ask(self, questions: Sequence[Question], call: Call) -> Answers:
        """Take questions on, once they are rendered and checked. RequestError if they are not."""
        rendered = await self._work(partial(self._renderer.render, questions))
        if any(question.rules.is_given for question in rendered):
            await self._work(partial(self._renderer.prepare, rendered), self._waiters)
        needed = sorted((self._memory.needed(question.most_tokens) for question in rendered), reverse=True)
        rows = min(len(rendered), self._max_rows)
        self._check_open()
        answers = Answers(rendered, self._tokenizer, call, rows=rows, needed=sum(needed[:rows]), cancel=self._cancel)
        self._memory.check(answers.job)
        self._engine.submit(answers.job)
        self._jobs.add(answers.job)
        return answers

    async def count_tokens(self, question: Question) -> int:
        """Tokens of a question's prompt. RequestError if it can be none."""
        return await self._work(partial(self._renderer.count, question))

    async def _work(self, work: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        """Do something beside the event loop; RequestError for what it raises, and once there is no use in it."""

        def in_turn() -> T:
            self._check_open()
            return work()

        assert self._loop is not None
        self._check_open()
        try:
            return await self._loop.run_in_executor(pool or self._workers, in_turn)
        except Exception as error:
            raise failure(error) from error

    def _check_open(self) -> None:
        if self._is_closing:
            raise unavailable("the server is shutting down")
        if not self.state().is_alive:
            raise unavailable("the engine is not running")

    def _unload(self) -> None:
        self._weights = None

    def _deliver(self, told: Delivery) -> None:
        """In the engine's thread: hand over what came of a step."""
        assert self._loop is not None
        if told:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._tell, told)

    def _tell(self, told: Delivery) -> None:
        for job, what in told:
            job.tell(what)
            if job.is_over:
                self._jobs.discard(job)

    def _cancel(self, job: Job, index: int | None) -> None:
        if index is None:
            self._jobs.discard(job)
        self._engine.cancel(job, index)


def _memory_for(model: CausalLM) -> Memory:
    """What the rows of a model share."""
    weights = sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
    workspace = min(device.PREFILL_ROOM, weights)  # as `Footprint` has it
    return Memory(model.config, model.dtype, model.kv_quantization, workspace=workspace)
