"""`PromptReader`: the prompts of a batch that wait, read a chunk at a time between steps.

Every other chunk is the oldest prompt's, the others are of the prompt that is read to its end soonest: a short one does
not wait for a long one, and none waits for ever.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import mlx.core as mx

from .. import device
from ..cache import ROW_SLACK, Cache, row_of
from ..models import CausalLM, sweep, sweep_length, sweeps
from .chunk_budget import ChunkBudget
from .requests import Event, Request


@dataclass
class Reading:
    """What was read between two steps."""

    tokens: int = 0
    finished: list[tuple[list[Request], mx.array]] = field(default_factory=list)
    """Prompts read to their ends, and the logits (n, vocab) after them."""
    failures: list[Event] = field(default_factory=list)


class RemovedError(Exception):
    """A request was removed while its prompt was read."""


class PromptReader:
    """Requests that have not joined yet. Each prompt is read into a cache of its own, short ones together into one."""

    def __init__(
        self, model: CausalLM, budget: ChunkBudget, *, step_size: int | None, on_layer: Callable[[], None] | None
    ) -> None:
        """on_layer: called between the layers of a prompt that is swept; may end requests, that one included."""
        self._model, self._budget, self._step_size, self._on_layer = model, budget, step_size, on_layer
        self.waiting: deque[Request] = deque()
        self._is_oldest_next = False

    @property
    def begun(self) -> int:
        return sum(request.read_tokens > 0 for request in self.waiting)

    def drop_ended(self) -> None:
        for request in self.waiting:
            if request.is_over:
                request.cache = None
        self.waiting = deque(request for request in self.waiting if not request.is_over)

    def read(self, rows: int, *, is_beside: bool) -> Reading:
        """Run a chunk of a prompt, or several prompts no longer than one.

        rows: how many there is room for, those that are begun included. is_beside: whether rows decode, which a chunk
        must not delay for long.
        """
        found = Reading()
        self._is_oldest_next = not self._is_oldest_next
        while eligible := list(islice(self.waiting, max(rows, 0))):
            first = eligible[0] if self._is_oldest_next and not found.tokens else min(eligible, key=self._rest)
            first = self._reading_for(first, eligible)
            requests = [first]
            try:
                cache = self._own_cache(first)
                room = self._step_size or device.prefill_step(cache.offset)
                if sweeps(self._model):  # once for as many tokens as there is room for
                    room = sweep_length(self._model)
                room = (min(room, self._budget.tokens) if is_beside else room) - found.tokens
                rest = len(first.prompt) - first.read_tokens
                if room <= 0 or (found.tokens and rest > room):
                    break
                if not is_beside:
                    requests += self._beside(first, eligible, room)
                if len(requests) > 1:
                    found.tokens += len(requests) * max(len(request.prompt) for request in requests)
                    logits = self._run_together(requests)
                else:
                    found.tokens += min(room, rest)
                    logits = self._run(first, cache, min(room, rest), is_beside)
                    if room < rest:
                        continue
                found.finished.append((requests, logits))
                rows -= len(requests)
            except RemovedError:
                continue
            except Exception as error:
                found.failures += [request.fail(error) for request in requests]
            for request in requests:
                self.waiting.remove(request)
        return found

    def _rest(self, request: Request) -> int:
        """Tokens of a prompt that are still to be run, as far as is known before it is begun."""
        if request.known_tokens is None:
            request.known_tokens = request.store.reach(request.prompt) if request.store is not None else 0
        return len(request.prompt) - max(request.read_tokens, request.known_tokens)

    def _reading_for(self, request: Request, eligible: Sequence[Request]) -> Request:
        """Another that is in the midst of reading what a prompt goes on with, and keeps it; else the request itself."""

        def reads_the_same(other: Request) -> bool:
            n = other.read_tokens + 1
            is_ahead = request.read_tokens + 1 < n <= len(request.prompt) and other.store is request.store
            return is_ahead and other.prompt[:n] == request.prompt[:n]

        return request if request.store is None else next(filter(reads_the_same, eligible), request)

    def _own_cache(self, request: Request) -> Cache:
        """The cache of a request that has not joined, at first with what the store knows of its prompt."""
        if request.cache is None and request.store is not None:
            request.cache, request.cached_tokens = request.store.lookup(request.prompt)
            request.read_tokens = request.cached_tokens
        elif request.cache is None:
            request.cache = self._model.make_cache()
        return request.cache

    def _beside(self, first: Request, eligible: Sequence[Request], room: int) -> list[Request]:
        """Those that may be read together with the first: with little padding, from nothing.

        Where quantization begins at some token, padding would count: there each is read alone.
        """
        length, kept = len(first.prompt), self._model.kv_quantization
        if first.read_tokens or first.has_cache or (kept is not None and kept.start):
            return []
        found: list[Request] = []
        longest = length
        for request in eligible:
            own = len(request.prompt)
            is_new = not (request is first or request.has_cache or request.read_tokens)
            fits = length <= 2 * own <= 4 * length and (len(found) + 2) * max(longest, own) <= room
            if is_new and fits and self._rest(request) == own:
                found.append(request)
                longest = max(longest, own)
        return found

    def _run_together(self, requests: list[Request]) -> mx.array:
        """Whole prompts, padded, into one cache: the logits (n, vocab) after each."""
        lengths = [len(request.prompt) for request in requests]
        ids = mx.array([request.prompt + [0] * (max(lengths) - len(request.prompt)) for request in requests])
        mask = (mx.arange(max(lengths)) < mx.array(lengths)[:, None]).astype(mx.int32)
        lasts, cache = mx.array(lengths)[:, None] - 1, self._model.make_cache(ROW_SLACK)
        began = time.perf_counter()
        logits = self._model(ids, cache=cache, attention_mask=mask, logits_to_keep=lasts)
        mx.eval(cache.arrays)
        self._budget.ran_alone(ids.size, time.perf_counter() - began)
        for row, request in enumerate(requests):
            request.cache, request.row, request.read_tokens = cache, row, len(request.prompt)
            self._keep(request, row_of(cache, row))
        return logits[:, 0]

    def _run(self, request: Request, cache: Cache, count: int, is_beside: bool) -> Any:
        """`count` more tokens of a prompt, awaited, or under way beside rows: the logits (1, vocab) after its last."""
        began = time.perf_counter()
        chunk = request.prompt[request.read_tokens : request.read_tokens + count]
        if sweeps(self._model):
            step = self._step_size or device.prefill_step(cache.offset + count)
            logits = sweep(self._model, chunk, cache, step_size=step, on_layer=lambda _: self._go_on_with(request))
        elif request.read_tokens + count == len(request.prompt):
            logits = self._model(mx.array([chunk]), cache=cache, logits_to_keep=1)[:, -1]
        else:
            logits = self._model(mx.array([chunk]), cache=cache, logits_to_keep=None)
        if is_beside:
            mx.async_eval(cache.arrays)
        else:
            mx.eval(cache.arrays)
            self._budget.ran_alone(count, time.perf_counter() - began)
        request.read_tokens += count
        self._keep(request, cache)
        return logits

    def _go_on_with(self, request: Request) -> None:
        """Between two layers of a request's prompt; RemovedError if it has been ended."""
        if self._on_layer is not None:
            self._on_layer()
        if request.is_over:
            raise RemovedError

    def _keep(self, request: Request, cache: Cache) -> None:
        if request.store is not None:
            request.store.insert(request.prompt[: cache.offset], cache, marks=(request.mark,))
