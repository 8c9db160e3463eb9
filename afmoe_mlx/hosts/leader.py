"""`Leader`: what follows the leader's own layers. Its followers are told of whatever is done to a cache."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any, Literal, TypeVar

import mlx.core as mx

from ..cache import Cache, KVCache, KVQuantization
from ..errors import CacheError, HostError, is_link_trouble
from ..interrupts import held
from ..models.chunk import Chunk
from ..models.decode import LONGEST_STEP
from .crew import Crew, all_of
from .link import Link
from .orders import Drop, ModelOrder, NewCache, OpenStore, Probe, Rewind, Run, Unload, kept_of
from .plan import Share
from .ring import take_part
from .store import StoresElsewhere

# Hidden states that may be on their way at once: enough for all hosts to work, few enough to fit.
UNDER_WAY = 2


T = TypeVar("T")


class Leader:
    """The `Beyond` of the first host's model: the layers of its followers.

    All caches of a kind are alike, so the leader's own tell what can be done with those of the others; `plan` sees to
    it that it has one of each kind.
    """

    def __init__(
        self,
        crew: Crew,
        link: Link,
        shares: Sequence[Share] = (),
        backend: str = "local",
        devices: Sequence[str] = (),
        model: int = 0,
    ) -> None:
        """shares, backend, devices: who holds what, how they are connected and what they are, to be told. model: its
        number."""
        self.crew, self.link, self._model = crew, link, model
        self.shares, self.backend, self.devices = shares, backend, devices
        # the last that is on its way here, in a list that outlives this
        self._received: list[mx.array] = []
        weakref.finalize(self, _end, crew, self._received, model)
        self._numbers = count()
        self._dropped: list[int] = []
        self._sent: list[list[mx.array]] = []
        self._told = self._is_long = False

    @property
    def parts(self) -> list[tuple[str, range]]:
        return [(share.name, share.part) for share in self.shares]

    def probe(self, kind: Literal["hop", "sum"], *, rounds: int = 100, size: int = 2048) -> float:
        """Seconds of a round of all hosts, each of which sends `size` float32 numbers on, or of a sum of them."""
        with held():
            return measure(self.crew, self.link, kind, rounds=rounds, size=size)

    def make_cache(self, layers: Sequence[KVCache], slack: int | None, kv_quantization: KVQuantization | None) -> Cache:
        cache = LedCache(layers, self, next(self._numbers))
        # a list, told of with what is told next: the collector may run in the midst of anything
        weakref.finalize(cache, self._dropped.append, cache.number)
        self.tell(NewCache(cache.number, slack, kept_of(kv_quantization)))
        return cache

    def check(self, cache: Cache) -> None:
        if not (isinstance(cache, LedCache) and cache.leader is self):
            raise CacheError("the cache is not one of this model's make_cache()")

    def open_store(
        self, *, block_size: int, max_bytes: int | None, on_disk: bool, max_disk_bytes: int | None
    ) -> StoresElsewhere:
        stores = StoresElsewhere(next(self._numbers), self.tell, self.ask)
        weakref.finalize(stores, self._dropped.append, stores.number)
        self.tell(OpenStore(stores.number, block_size, max_bytes, on_disk, max_disk_bytes))
        return stores

    def ask(self, order: ModelOrder, kind: type[T]) -> list[T]:
        """Tell all followers, and wait for an answer of each."""
        with held():
            self.tell(order)
            found = self.crew.answers()
        return all_of(found, kind)

    def tell(self, order: ModelOrder) -> None:
        """Tell all followers, of the caches and stores that are gone first."""
        with held():
            if self._dropped:
                gone = tuple(self._dropped)
                del self._dropped[: len(gone)]  # another may have come meanwhile
                self.crew.tell(Drop(gone, model=self._model))
            self.crew.tell(order if self._model == 0 else replace(order, model=self._model))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        with self.named():
            while len(self._sent) >= UNDER_WAY:
                mx.eval(self._sent.pop(0))
        with held():
            self._told = self._is_long = False
            try:
                yield
            except BaseException as error:
                if self._told:
                    self.crew.fail(f"a step was begun and not ended: {error}")
                raise
        if self._is_long:
            with self.named():  # before the device is given what follows: Metal ends work that waits for seconds
                mx.eval(self._received)

    @contextmanager
    def named(self) -> Iterator[None]:
        """In which MLX's word that a peer is gone becomes one that names the host."""
        try:
            yield
        except RuntimeError as error:
            if not is_link_trouble(error):
                raise
            raise HostError(self.crew.reason() or str(error)) from None

    def __call__(self, h: Sequence[mx.array], chunks: Sequence[Chunk], wanted: int | None) -> mx.array | None:
        first, last = chunks[0], chunks[-1]
        cache = first.cache
        number = cache.number if isinstance(cache, LedCache) else None
        lengths = tuple(chunk.length for chunk in chunks)
        seen = 0 if cache is None else cache.offset - sum(lengths)  # these layers have the chunks already
        rows, mask, positions = first.batch_size, _rows(first.attention_mask), _rows(first.position_ids)
        self._told = True
        self.tell(Run(number, seen, rows, lengths, wanted, mask, positions))
        with self.named():
            self._sent.append([self.link.send(state) for state in h])
            for sent in self._sent[-1]:
                mx.async_eval(sent)
            if wanted is None:
                return None
            found = self.link.receive((rows, wanted or last.length, h[0].shape[-1]), h[0].dtype)
            # at once: a vector that is sent and not received would be taken for the next
            mx.async_eval(found)
        self._received[:], self._is_long = [found], last.length > LONGEST_STEP
        return found

    def wait_for_followers(self) -> None:
        """Wait for what they have sent here, which is on its way already: in any thread."""
        mx.eval(list(self._received))

    def wait(self) -> None:
        """Wait for what is on its way."""
        mx.eval(self._received, self._sent)


def measure(crew: Crew, link: Link, kind: Literal["hop", "sum"], *, rounds: int = 100, size: int = 2048) -> float:
    """Seconds of a round of all hosts, each of which sends `size` float32 numbers on, or of a sum of them."""
    order = Probe(kind, rounds, size)
    crew.tell(order)
    return take_part(link, order)


def _end(crew: Crew, received: Sequence[mx.array], model: int) -> None:
    """Let the followers forget a model, once nothing is on its way from them: MLX would take their end for a fault."""
    with suppress(HostError, KeyboardInterrupt), held():  # a finalizer has nobody to raise it to
        try:
            mx.eval(received)
        except RuntimeError:
            crew.reason()  # one is lost, which is told first
        crew.tell(Unload(model))


class LedCache(Cache):
    """A cache whose other layers are the followers'; they know it by its number."""

    is_whole = False

    def __init__(self, layers: Sequence[KVCache], leader: Leader, number: int) -> None:
        super().__init__(layers)
        self.number, self.leader = number, leader

    def rewind(self, n: int) -> None:
        with held():
            super().rewind(n)
            if n:
                self.leader.tell(Rewind(self.number, n))

    @property
    def state(self) -> dict[str, mx.array]:
        raise CacheError("the cache is kept by several hosts and has no state here: use a PrefixStore")

    @state.setter
    def state(self, state: dict[str, mx.array]) -> None:
        raise CacheError("a cache of several hosts cannot be given a state: use a PrefixStore")


def _rows(array: mx.array | None) -> Any:
    if array is None:
        return None
    rows: Any = (array[None] if array.ndim == 1 else array).astype(mx.int32).tolist()
    return tuple(map(tuple, rows))
