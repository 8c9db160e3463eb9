"""How much of a prompt is read beside rows that decode: what delays them by no more than some time."""

import time
from collections import deque
from collections.abc import Callable

LEAST, FIRST = 32, 128
MEMORY = 0.7  # of what was measured before, in a running mean
AIM = 0.6  # of the time that there is: some chunks take longer than the mean, which grows with the prompt


class ChunkBudget:
    """Prompt tokens to run between two steps, from the times that steps took with and without them.

    The device works in order and the host is ahead of it: tokens that were chosen in one call are read in the next, so
    a chunk is felt two reads later.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds, self._clock = seconds, clock
        self._step: float | None = None
        self._per_token: float | None = None
        self._last: float | None = None
        self._under_way: deque[int] = deque([0, 0], maxlen=2)

    @property
    def tokens(self) -> int:
        """How many to run now."""
        if self._per_token is None:
            return FIRST
        return max(int(AIM * self._seconds / max(self._per_token, 1e-9)) // LEAST * LEAST, LEAST)

    def ran_alone(self, tokens: int, seconds: float) -> None:
        """A chunk was run and awaited, with nothing beside it."""
        self._per_token = _mean(self._per_token, seconds / tokens)
        self.pause()

    def read(self, started: int) -> None:
        """A step's tokens have been read, and `started` prompt tokens begun after it."""
        now, felt = self._clock(), self._under_way[0]
        if self._last is not None:
            seconds = now - self._last
            if felt == 0:
                self._step = _mean(self._step, seconds)
            elif self._step is not None:
                self._per_token = _mean(self._per_token, max(seconds - self._step, 0) / felt)
        self._last = now
        self._under_way.append(started)

    def pause(self) -> None:
        """Something else took its time: the interval that is under way says nothing."""
        self._last = None


def _mean(before: float | None, value: float) -> float:
    return value if before is None else MEMORY * before + (1 - MEMORY) * value
