"""`PromptReader`: the prompts of a batch that wait, read in their order, a chunk at a time between steps."""

import time
from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile

import mlx.core as mx

from .. import device
from ..cache import ROW_SLACK, Cache, PrefixStore, row_of
from ..models import CausalLM
from .chunk_budget import ChunkBudget
from .requests import Event, Request


@dataclass
class Reading:
    """What was read between two steps."""

    tokens: int = 0
    finished: list[tuple[list[Request], mx.array]] = field(default_factory=list)
    """Prompts read to their ends, and the logits (n, vocab) after them."""
    failures: list[Event] = field(default_factory=list)


class PromptReader:
    """Requests that have not joined yet. Each prompt is read into a cache of its own, short ones together into one."""

    def __init__(
        self, model: CausalLM, budget: ChunkBudget, *, step_size: int | None, store: PrefixStore | None
    ) -> None:
        self._model, self._budget, self._step_size, self._store = model, budget, step_size, store
        self.waiting: deque[Request] = deque()

    @property
    def begun(self) -> int:
        return sum(request.read_tokens > 0 for request in self.waiting)

    def drop_ended(self) -> None:
        for request in self.waiting:
            if request.is_over:
                request.cache = None
        self.waiting = deque(request for request in self.waiting if not request.is_over)

    def read(self, free: int, *, is_beside: bool) -> Reading:
        """Run a chunk of a prompt, or several prompts no longer than one.

        free: how many may be begun. is_beside: whether rows decode, which a chunk must not delay for long.
        """
        found = Reading()
        while self.waiting and (self.waiting[0].read_tokens or free > 0):
            requests = [self.waiting[0]]
            free -= not requests[0].read_tokens
            try:
                cache = self._own_cache(requests[0])
                room = self._step_size or device.prefill_step(cache.offset)
                room = (min(room, self._budget.tokens) if is_beside else room) - found.tokens
                rest = len(requests[0].prompt) - requests[0].read_tokens
                if room <= 0 or (found.tokens and rest > room):
                    break
                if not is_beside:
                    requests += self._beside(requests[0], free, room)
                    free -= len(requests) - 1
                if len(requests) > 1:
                    found.tokens += len(requests) * max(len(request.prompt) for request in requests)
                    logits = self._run_together(requests)
                else:
                    found.tokens += min(room, rest)
                    logits = self._run(requests[0], cache, min(room, rest), is_beside)
                    if room < rest:
                        continue
                found.finished.append((requests, logits))
            except Exception as error:
                found.failures += [request.fail(error) for request in requests]
            for _ in requests:
                self.waiting.popleft()
        return found

    def _own_cache(self, request: Request) -> Cache:
        """The cache of a request that has not joined, at first with what the store knows of its prompt."""
        if request.cache is None and self._store is not None:
            request.cache, request.cached_tokens = self._store.lookup(request.prompt)
            request.read_tokens = request.cached_tokens
        elif request.cache is None:
            request.cache = self._model.make_cache()
        return request.cache

    def _beside(self, first: Request, free: int, room: int) -> list[Request]:
        """Those of the next `free` prompts that may be read together with the first: with little padding, from nothing.

        Where quantization begins at some token, padding would count: there each is read alone.
        """
        length, kept = len(first.prompt), self._model.kv_quantization
        if first.read_tokens or first.has_cache or (kept is not None and kept.start):
            return []

        def fits(number_and_request: tuple[int, Request]) -> bool:
            number, request = number_and_request
            own = len(request.prompt)
            is_new = not (request.has_cache or (self._store is not None and self._store.reach(request.prompt)))
            return is_new and length <= 2 * own <= 4 * length and (number + 1) * max(length, own) <= room

        return [request for _, request in takewhile(fits, enumerate(list(self.waiting)[1 : free + 1], 1))]

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

    def _run(self, request: Request, cache: Cache, count: int, is_beside: bool) -> mx.array:
        """`count` more tokens of a prompt: awaited, or under way beside rows; the last one's logits (1, vocab)."""
        began = time.perf_counter()
        chunk = request.prompt[request.read_tokens : request.read_tokens + count]
        logits = self._model(mx.array([chunk]), cache=cache, logits_to_keep=1)
        # the layers alone: the logits stay unused, and so uncomputed, until the last chunk's
        if is_beside:
            mx.async_eval(cache.arrays)
        else:
            mx.eval(cache.arrays)
            self._budget.ran_alone(count, time.perf_counter() - began)
        request.read_tokens += count
        self._keep(request, cache)
        return logits[:, -1]

    def _keep(self, request: Request, cache: Cache) -> None:
        if self._store is not None:
            self._store.insert(request.prompt[: cache.offset], cache)
