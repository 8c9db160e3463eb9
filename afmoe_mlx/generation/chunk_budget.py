"""How much of a prompt is read beside rows that decode: what delays them by no more than some time."""

import math
import time
from collections import deque
from collections.abc import Callable

# Tokens of a chunk at least, and of those before anything is measured.
LEAST, FIRST = 32, 128
# Weight of what was measured before, in a running mean.
MEMORY = 0.7
# Part of the time that chunks are to take: some take longer than the mean, which grows with the prompt.
AIM = 0.6


class ChunkBudget:
    """Prompt tokens to run between two steps, from the times that steps took with and without them.

    The device works in order and the host is ahead of it: tokens that were chosen in one call are read in the next, so
    that a chunk is felt two reads later, or at once where MLX lets the host wait. The first two of a row of chunks and
    the reads after the last count only where they were felt as one would be.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds, self._clock = seconds, clock
        self._step: float | None = None  # seconds of one without a chunk
        self._felt, self._tokens = 0.0, 0.0  # seconds of chunks, and how many tokens: the older the less
        self._last: float | None = None  # when a step's tokens were read
        self._under_way: deque[int] = deque([0, 0], maxlen=2)  # tokens of the chunks begun after the last two reads

    @property
    def tokens(self) -> int:
        """How many to run now."""
        if not self._tokens:
            return FIRST
        return max(int(AIM * self._seconds / max(self._per_token, 1e-9)) // LEAST * LEAST, LEAST)

    @property
    def _per_token(self) -> float:
        return self._felt / self._tokens if self._tokens else math.inf

    def ran_alone(self, tokens: int, seconds: float) -> None:
        """A chunk was run and awaited, with nothing beside it."""
        self._add(tokens, seconds)
        self.pause()

    def read(self, started: int) -> None:
        """A step's tokens have been read, and `started` prompt tokens begun after it."""
        now = self._clock()
        if self._last is not None:
            seconds = now - self._last
            if not (started or any(self._under_way)):
                self._step = seconds if self._step is None else MEMORY * self._step + (1 - MEMORY) * seconds
            elif self._step is not None:
                self._learn(self._under_way[0], started, max(seconds - self._step, 0))
        self._last = now
        self._under_way.append(started)

    def _learn(self, before: int, started: int, seconds: float) -> None:
        """Take what an interval had beyond a plain step for a chunk's: of the one two reads before it, or that begun.

        With both it is surely one of them; with one alone it may be neither, and then has too few seconds.
        """
        tokens = before or started
        if tokens and ((before and started) or seconds >= tokens * self._per_token / 2):
            self._add(tokens, seconds)

    def _add(self, tokens: int, seconds: float) -> None:
        self._felt, self._tokens = MEMORY * self._felt + seconds, MEMORY * self._tokens + tokens

    def pause(self) -> None:
        """Something else took its time: the interval that is under way says nothing."""
        self._last = None
