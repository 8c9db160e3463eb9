"""`Elsewhere`: where a model's other layers are, prefix stores keep their columns."""

from collections.abc import Sequence
from typing import Protocol

from .cache import Cache


class Elsewhere(Protocol):
    """The stores of a model's other layers, which do what one store does; owner: as in `PrefixStore.for_owner`."""

    def reach(self, owner: str, tokens: Sequence[int]) -> int:
        """The fewest of `tokens` that any of them could give a cache of."""
        ...

    def fill(self, owner: str, tokens: Sequence[int], cache: Cache) -> int:
        """Fill an empty cache's other layers with what each has of `tokens`: the fewest that any had."""
        ...

    def insert(self, owner: str, tokens: Sequence[int], cache: Cache, marks: Sequence[int]) -> None:
        """Keep what a cache's other layers hold of `tokens`."""
        ...

    def flush(self) -> None:
        """Wait until every disk has all that it shall have."""
        ...
