"""What followers keep beside the leader's prefix store: each the columns of its own layers."""

from collections.abc import Callable, Sequence
from typing import Any

from ..cache import Cache
from .orders import Done, Flush, Found, Insert, Lookup, ModelOrder, Reach

Tell = Callable[[ModelOrder], None]
Ask = Callable[[ModelOrder, type], Sequence[Any]]


class StoresElsewhere:
    """The `Elsewhere` of a leader's prefix store."""

    def __init__(self, number: int, tell: Tell, ask: Ask) -> None:
        self.number, self._tell, self._ask = number, tell, ask

    def reach(self, owner: str, tokens: Sequence[int]) -> int:
        return self._least(Reach(self.number, owner, tuple(tokens)))

    def fill(self, owner: str, tokens: Sequence[int], cache: Cache) -> int:
        return self._least(Lookup(self.number, owner, tuple(tokens), _number(cache)))

    def insert(self, owner: str, tokens: Sequence[int], cache: Cache, marks: Sequence[int]) -> None:
        self._tell(Insert(self.number, owner, tuple(tokens), _number(cache), tuple(marks)))

    def flush(self) -> None:
        self._ask(Flush(self.number), Done)

    def _least(self, order: Reach | Lookup) -> int:
        return min(found.tokens for found in self._ask(order, Found))


def _number(cache: Any) -> int:
    number: int = cache.number
    return number
