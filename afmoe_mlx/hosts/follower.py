"""`Follower`: layers of a model that do what the leader says."""

from pathlib import Path

import mlx.core as mx

from ..cache import Cache, PrefixStore
from ..errors import HostError
from ..models import LONGEST_STEP, CausalLM, sweep_layers
from .link import Link
from .orders import (
    Answer,
    Done,
    Drop,
    Flush,
    Found,
    Insert,
    Lookup,
    ModelOrder,
    NewCache,
    OpenStore,
    Reach,
    Rewind,
    Run,
    quantization_of,
)


class Follower:
    """A part of a model, its caches by the leader's numbers, and its prefix stores.

    directory: where stores that are to be on disk are.
    """

    def __init__(self, model: CausalLM, link: Link, *, directory: Path | None = None) -> None:
        self.model, self._link, self._directory = model, link, directory
        self._caches: dict[int, Cache] = {}
        self._stores: dict[int, PrefixStore] = {}
        self._under_way: list[mx.array] = []

    def do(self, order: ModelOrder) -> Answer | None:
        """Do an order, the work of a step left under way; HostError for one that makes no sense here."""
        match order:
            case Run():
                self._run(order)
            case Rewind():
                self._cache(order.cache).rewind(order.n)
            case NewCache():
                kept = quantization_of(order.kept)
                self._caches[order.cache] = self.model.make_cache(order.slack, kv_quantization=kept)
            case Drop():
                for number in order.numbers:
                    self._caches.pop(number, None)
                    self._stores.pop(number, None)
            case OpenStore():
                self._stores[order.store] = PrefixStore(
                    self.model,
                    max_bytes=order.max_bytes,
                    directory=self._directory if order.on_disk else None,
                    max_disk_bytes=order.max_disk_bytes,
                    block_size=order.block_size,
                )
            case Reach():
                return Found(self._store(order).reach(order.tokens))
            case Lookup():
                return Found(self._store(order).fill(order.tokens, self._cache(order.cache)))
            case Insert():
                self._store(order).insert(order.tokens, self._cache(order.cache), marks=order.marks)
            case Flush():
                self._stores[order.store].flush()
                return Done()
        return None

    def warm_up(self) -> None:
        """Run a step alone, which compiles what steps are made of."""
        cache = self.model.make_cache()
        h = mx.zeros((1, 1, self.model.config.hidden_size), self.model.dtype)
        mx.eval(self.model.part_of(h, self.model.chunk((1, 1), cache)), cache.arrays)

    @property
    def is_busy(self) -> bool:
        """Whether something is under way."""
        return bool(self._under_way)

    def finish(self) -> None:
        """Wait for what is under way."""
        mx.eval(self._under_way)
        self._under_way = []

    def _run(self, order: Run) -> None:
        self.finish()  # no more than one: what is under way takes memory
        cache = None if order.cache is None else self._cache(order.cache)
        if cache is not None and cache.offset != order.seen:  # what was done to it there was not told
            raise HostError(
                f"out of step: the cache has seen {cache.offset} tokens here, {order.seen} on the first host"
            )
        mask = None if order.mask is None else mx.array(order.mask)
        positions = None if order.positions is None else mx.array(order.positions)
        model, rows, ahead, chunks = self.model, order.rows, 0, []
        for length in order.lengths:
            chunks.append(model.chunk((rows, length), cache, mask, positions, ahead=ahead))
            ahead += length
        shapes = [(rows, length, model.config.hidden_size) for length in order.lengths]
        received = [self._link.receive(shape, model.dtype) for shape in shapes]
        mx.async_eval(*received)
        is_prompt = max(order.lengths) > LONGEST_STEP and rows == 1
        if model.reads_experts and cache is not None and is_prompt:
            mx.eval(received)
            h = sweep_layers(model, received, chunks, cache)
        else:
            h = [model.part_of(part, chunk) for part, chunk in zip(received, chunks, strict=True)]
        if model.part.stop == model.config.num_hidden_layers:  # the last host, which sends to the leader
            h = [] if order.wanted is None else [h[-1][:, -order.wanted :]]
        mx.eval(received)  # before the device is given what follows: Metal ends work that waits for seconds
        self._under_way = [self._link.send(part) for part in h]
        mx.async_eval(self._under_way, [] if cache is None else cache.arrays)
        self._under_way += [] if cache is None else cache.arrays

    def _cache(self, number: int) -> Cache:
        if number not in self._caches:
            raise HostError(f"there is no cache {number} here")
        return self._caches[number]

    def _store(self, order: Reach | Lookup | Insert) -> PrefixStore:
        if order.store not in self._stores:
            raise HostError(f"there is no store {order.store} here")
        return self._stores[order.store].for_owner(order.owner)
