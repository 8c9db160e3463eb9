"""The cache of one conversation: rewound, continued, or looked up in the prefix cache."""

from collections.abc import Iterable, Sequence

from afmoe_mlx.cache import PrefixStore, shared_prefix
from afmoe_mlx.generation.loop import Progress
from afmoe_mlx.models import CausalLM

from .waypoints import Waypoints


class Recall:
    """The cache of a conversation, the tokens it has seen, the places it can go back to, and the store behind it."""

    def __init__(self, model: CausalLM, store: PrefixStore | None = None) -> None:
        self.model, self.store = model, store
        self.cache = model.make_cache()
        self._seen: list[int] = []
        self._waypoints = Waypoints()

    @property
    def tokens(self) -> list[int]:
        """Those that the cache has seen."""
        return self._seen[: self.cache.offset]

    @property
    def nbytes(self) -> int:
        """What the store and the way back hold in memory, the cache in use aside."""
        return self._waypoints.nbytes + (0 if self.store is None else self.store.nbytes)

    def begin(self, tokens: Sequence[int]) -> int:
        """Bring the cache to the longest beginning of `tokens` that is known, less one to run; how long that is."""
        common = shared_prefix(self.tokens, tokens[:-1])
        surplus = self.cache.offset - common
        is_near = surplus <= self.cache.rewindable
        place = common if is_near else self._waypoints.nearest(self.cache, common)
        self._waypoints.cut(common)
        if self.store is not None and self.store.reach(tokens) > place:
            self.cache, place = self.store.lookup(tokens)
        elif is_near:
            self.cache.rewind(surplus)
        elif place:
            self._waypoints.go_back(self.cache, place)
        else:
            self.cache = self.model.make_cache()
        self._seen = list(tokens[:place])
        return place

    def marking(self, places: Iterable[int], on_progress: Progress | None = None) -> Progress:
        """The same report of progress, which also marks the places as the prompt is read past them."""
        places = sorted(set(places))

        def progress(done: int, total: int) -> None:
            self._waypoints.mark(self.cache, places)
            if on_progress is not None:
                on_progress(done, total)

        return progress

    def finish(self, tokens: Sequence[int], marks: Iterable[int] = ()) -> None:
        """Learn which tokens were run, more than the cache has seen perhaps; `marks` as in `PrefixStore.insert`."""
        self._seen = list(tokens[: self.cache.offset])
        if self.store is not None:
            self.store.insert(self._seen, self.cache, marks=marks)
