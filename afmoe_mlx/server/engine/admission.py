"""What requests may come to need of memory, and whose turn it is: nothing is begun that might not fit."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ... import device
from ...cache import KVQuantization
from ...footprint.cache import layer_caches
from ...generation.grouping import GROUP_COST, WORTH_IT
from ...models import ModelConfig
from ...terminal import size
from ..errors import RETRY_AFTER, RequestError
from .jobs import Job

# Tokens of a row by which a column of it is reckoned.
PIECE = 256


@dataclass(frozen=True)
class Held:
    """Bytes that are held now: keys and values of rows, and those of the prefixes that a store keeps, of how many."""

    rows: int = 0
    store: int = 0
    most_in_store: int = 0


class Memory:
    """The memory that rows share. Figures in bytes; where the device does not tell, everything fits."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: mx.Dtype,
        kv_quantization: KVQuantization | None,
        *,
        workspace: int,
        usable: Callable[[], int | None] = lambda: device.memory().usable,
    ) -> None:
        """workspace: what a step through a prompt works in. usable: what is free now."""
        self._config, self._dtype, self._kv = config, dtype, kv_quantization
        self._workspace, self._usable = workspace, usable
        self.held = Held()
        self.at_rest: int | None = None
        """What `most` was when the weights were let go of, which come back: till then, what is free says nothing."""

    def needed(self, tokens: int) -> int:
        """What a row with so many tokens needs; as it joins others, one layer's keys and values are there twice."""
        kinds = layer_caches(self._config, tokens, self._dtype, self._kv).values()
        return sum(kind.held for kind in kinds) + max(kind.held // kind.layers for kind in kinds)

    @property
    def most(self) -> int | None:
        """What all rows together can have; None: nobody knows."""
        if self.at_rest is not None:
            return self.at_rest
        usable, held = self._usable(), self.held
        if usable is None:
            return None
        return max(usable + held.rows - (held.most_in_store - held.store) - self._workspace, 0)

    def has_room(self, jobs: Sequence[Job]) -> bool:
        """Whether all of these have what they may come to need."""
        most = self.most
        return most is None or self.needed_by(jobs) <= most

    def needed_by(self, jobs: Sequence[Job]) -> int:
        """What jobs may need together: rows that share a cache are padded to the longest of them."""
        others = sum(job.rows for job in jobs) - 1
        padding = min(others * max(job.longest for job in jobs), GROUP_COST + WORTH_IT)
        return sum(job.needed for job in jobs) + padding * self.needed(PIECE) // PIECE

    def check(self, job: Job) -> None:
        """RequestError if several answers do not fit together, with nothing beside them; one alone is `limit`'s."""
        if job.rows > 1 and not self.has_room([job]):
            needed, most = size(self.needed_by([job])), size(self.most or 0)
            found = f"{job.rows} answers at once need {needed} of memory, this machine has {most} for it"
            raise RequestError(400, f"{found}: ask for fewer")

    def limit(self, prompt_tokens: int, limit: int) -> int:
        """Tokens that the answer to a prompt may have, at most `limit`, so that alone it fits.

        RequestError if not even the prompt does.
        """
        most = self.most
        if most is None or self.needed(prompt_tokens + limit) <= most:
            return limit
        if (needed := self.needed(prompt_tokens + 1)) > most:
            raise RequestError(
                400,
                f"a prompt of {prompt_tokens} tokens needs {size(needed)} of memory, this machine has {size(most)} for "
                "it: shorten it",
                code="context_length_exceeded",
            )
        low, high = 1, limit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.needed(prompt_tokens + middle) <= most else (low, middle)
        return low


class Queue:
    """Requests that wait. The owner who has the fewest rows is next, of several who was last in turn the longest ago.

    An owner's own are in the order in which they came. For any thread.
    """

    def __init__(self, *, max_waiting: int) -> None:
        """max_waiting: of each owner, so that none shuts out the others."""
        self._max_waiting = max_waiting
        self._jobs: list[Job] = []
        self._turns: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """RequestError if too many wait already."""
        with self._lock:
            waiting = sum(other.owner == job.owner for other in self._jobs)
            if waiting >= self._max_waiting:
                raise RequestError(
                    429, f"{waiting} requests wait already: ask again later", code="queue_full", retry_after=RETRY_AFTER
                )
            self._jobs.append(job)

    def next(self, running: Sequence[Job]) -> Job | None:
        """The next in turn, which stays."""
        rows: Counter[str] = Counter()
        for job in running:
            rows[job.owner] += job.rows
        with self._lock:
            return min(self._jobs, key=lambda job: (rows[job.owner], self._turns.get(job.owner, 0)), default=None)

    def take(self, job: Job) -> bool:
        """Remove one; whether it was there."""
        with self._lock:
            if is_there := job in self._jobs:
                self._jobs.remove(job)
                self._turns[job.owner] = max(self._turns.values(), default=0) + 1
            return is_there

    def clear(self) -> list[Job]:
        """Remove all; those that there were."""
        with self._lock:
            jobs, self._jobs = self._jobs, []
            return jobs
