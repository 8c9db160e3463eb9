"""`Link`: hidden states from one host to the next, in a ring. The only file of the hosts that names `mx.distributed`.

What a call gives is lazy. It must be evaluated, in the order of the calls: hosts pair what they send and receive by
order alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import mlx.core as mx

Backend = Literal["ring", "jaccl"]


class Link(Protocol):
    """What a host has of the ring: the leader has rank 0, and the last rank sends to it."""

    rank: int
    size: int

    def send(self, x: mx.array) -> mx.array:
        """`x` for the host after this one: evaluate what is returned."""
        ...

    def receive(self, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
        """What the host before this one sends next."""
        ...

    def sum(self, x: mx.array) -> mx.array:
        """The sum of every host's `x`."""
        ...


class GroupLink:
    """A link over a group of `mx.distributed`, by the environment variables that MLX reads."""

    def __init__(self, backend: Backend) -> None:
        """Connects, which takes until all hosts do. RuntimeError if they do not."""
        self._group = mx.distributed.init(strict=True, backend=backend)
        self.rank, self.size = self._group.rank(), self._group.size()

    def send(self, x: mx.array) -> mx.array:
        return mx.distributed.send(x, (self.rank + 1) % self.size, group=self._group)

    def receive(self, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
        return mx.distributed.recv(shape, dtype, (self.rank - 1) % self.size, group=self._group)

    def sum(self, x: mx.array) -> mx.array:
        return mx.distributed.all_sum(x, group=self._group)


class LocalLink:
    """The same between models of one process, which is how tests run all but processes."""

    def __init__(self, rank: int, inboxes: Sequence["deque[mx.array]"], pump: Callable[[int], None]) -> None:
        """inboxes: of each rank. pump: called with the rank that waits for something, to have the others run."""
        self.rank, self.size = rank, len(inboxes)
        self._inboxes, self._pump = inboxes, pump
        self.sent = 0

    def send(self, x: mx.array) -> mx.array:
        self.sent += 1
        self._inboxes[(self.rank + 1) % self.size].append(x)
        return x

    def receive(self, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
        if not self._inboxes[self.rank]:
            self._pump(self.rank)
        found = self._inboxes[self.rank].popleft()
        assert (found.shape, found.dtype) == (tuple(shape), dtype)
        return found

    def sum(self, x: mx.array) -> mx.array:
        return x * self.size
