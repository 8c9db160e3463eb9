"""`Crew`: the followers, as their leader sees them."""

from collections.abc import Sequence
from typing import Protocol

from .orders import Answer, Order


class Crew(Protocol):
    """Followers that all do the same orders, in the order in which they are told."""

    def tell(self, order: Order) -> None:
        """Write an order to every follower. HostError if one is lost."""
        ...

    def answers(self) -> Sequence[Answer]:
        """One answer of each follower, in their order, to the last order that has any. HostError if one is lost."""
        ...

    def fail(self, line: str) -> None:
        """End all followers: they are out of step."""
        ...
