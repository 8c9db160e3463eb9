"""The order in which examples are learned, and their tokens as arrays."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError
from .examples import Example

# Lengths are rounded up by an eighth at most, and by no less than this, so that few shapes occur.
LEAST_STEP = 8


@dataclass(frozen=True)
class Batch:
    """Tokens (B, L) and which of them (B, L) are to be learned from those before them; padded at the end.

    origins: where its examples come from.
    """

    tokens: mx.array
    learned: mx.array
    origins: Sequence[str]


class Batches:
    """Batches of `size` examples, of which each process of several takes its share, without end.

    The order follows from the seed alone, each pass over the examples having its own; those of a batch are of like
    length. Of an example, the first `longest` tokens count; `cut` says how many have more. InputError if none of what
    is to be learned is left of one.
    """

    def __init__(
        self, examples: Sequence[Example], size: int, longest: int, *, seed: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        if size < 1 or longest < 2:
            raise InputError(f"batch_size is {size}, max_seq_length {longest}: expected 1 and 2 or more")
        if size % ranks:
            raise InputError(f"batch_size is {size}: expected a multiple of {ranks}, the processes")
        if lost := [example.origin for example in examples if example.start >= longest]:
            raise InputError(f"{lost[0]}: the prompt alone has {longest} tokens or more: raise --max-seq-length")
        self._examples, self._size, self._longest = examples, size, longest
        self._seed, self._rank, self._ranks = seed, rank, ranks
        self._lengths = [min(len(example), longest) for example in examples]
        self._pass: tuple[int, list[list[int]]] = (-1, [])
        self.cut = sum(len(example) > longest for example in examples)

    @property
    def per_pass(self) -> int:
        """Batches until each example was in one."""
        return -(-len(self._examples) // self._size)

    @property
    def longest(self) -> int:
        """Columns of the widest batch."""
        return max(map(rounded, self._lengths))

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        number, place = divmod(step, self.per_pass)
        if self._pass[0] != number:
            self._pass = number, self._order(number)
        return self._batch(self._pass[1][place])

    def once(self, most: int = -1) -> Iterator[Batch]:
        """Each example once, the shortest first, or so many batches of some drawn by the seed, alike each time."""
        order = self._order(0)
        chosen = order if most < 0 else order[:most]
        for rows in sorted(chosen, key=lambda rows: self._lengths[rows[0]]):
            yield self._batch(rows)

    def _order(self, number: int) -> list[list[int]]:
        drawn = random.Random(f"{self._seed} {number}")
        indices = list(range(len(self._examples)))
        drawn.shuffle(indices)
        indices.sort(key=lambda i: rounded(self._lengths[i]))
        batches = [indices[start : start + self._size] for start in range(0, len(indices), self._size)]
        drawn.shuffle(batches)
        return batches

    def _batch(self, rows: Sequence[int]) -> Batch:
        width = rounded(max(self._lengths[i] for i in rows))
        own = rows[self._rank :: self._ranks]
        tokens, learned = [], []
        for i in own:
            example, length = self._examples[i], self._lengths[i]
            tokens.append([*example.tokens[:length], *[0] * (width - length)])
            learned.append([max(example.start, 1) <= t < length for t in range(width)])
        if not own:  # a process for which none was left computes, and learns nothing
            tokens, learned = [[0] * width], [[False] * width]
        origins = [self._examples[i].origin for i in rows]
        return Batch(mx.array(tokens, mx.int32), mx.array(learned), origins)


def rounded(length: int) -> int:
    """So many columns for a row of this length."""
    step = max(1 << max(length.bit_length() - 4, 0), LEAST_STEP)
    return -(-length // step) * step
