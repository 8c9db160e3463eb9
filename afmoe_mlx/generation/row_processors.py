"""The logits processors of several rows as one, each row's logits as its own processors would make them.

Biases and penalties lie in arrays, with numbers that change nothing for a row that has none. What is not known here, a
user's own processors and n-grams, runs row by row.
"""

from collections.abc import Sequence
from itertools import takewhile

import mlx.core as mx

from .processors import (
    FrequencyPenalty,
    LogitBias,
    LogitsProcessor,
    PresencePenalty,
    RecentPenalty,
    RepetitionPenalty,
)

# What rows share, in the order in which `make_logits_processors` has it.
PENALTIES: tuple[type[RecentPenalty], ...] = (RepetitionPenalty, PresencePenalty, FrequencyPenalty)
SHARED = (LogitBias, *PENALTIES)

# In a history, before the first token of a row: to MLX the vocabulary's last token, never counted.
NOTHING = -1
EVERYTHING = 2**31 - 1


class RowProcessors:
    """The processors of rows, and as many of the rows' last tokens as they look at.

    processors: each row's. tokens: each row's, those of the prompt too, at least one.
    """

    def __init__(
        self, processors: Sequence[Sequence[LogitsProcessor]], tokens: Sequence[Sequence[int]], vocab_size: int
    ) -> None:
        shared = [_shared(row) for row in processors]
        self._own = [row[len(known) :] for row, known in zip(processors, shared, strict=True)]
        self._penalties = [(kind, *found) for kind in PENALTIES if (found := _penalties(shared, kind)) is not None]
        self._biases = _biases(shared, vocab_size)
        self._counts = [len(row) for row in tokens]
        recent = [
            (p, len(row))
            for known, row in zip(shared, tokens, strict=True)
            for p in known
            if isinstance(p, RecentPenalty)
        ]
        reach = max((max(p.context_size, p.window(count), 1) for p, count in recent), default=0)
        self._reach = EVERYTHING if any(self._own) else reach
        self._grows = any(p.context_size <= 0 for p, _ in recent)  # by a token a step
        history = [row[max(len(row) - self._reach, 0) :] for row in tokens]
        self._lengths = [len(row) for row in history]
        width = max(self._lengths, default=0)
        self._history = mx.array([[NOTHING] * (width - len(row)) + list(row) for row in history], mx.int32)

    def extend(self, tokens: Sequence[int]) -> None:
        """Learn the next token of each row."""
        self._counts = [count + 1 for count in self._counts]
        if self._reach:
            self._reach += self._grows
            history = mx.concatenate([self._history, mx.array([[token] for token in tokens], mx.int32)], axis=1)
            self._lengths = [min(length + 1, self._reach) for length in self._lengths]
            self._history = history[:, history.shape[1] - max(self._lengths) :]

    def __call__(self, logits: mx.array, failed: dict[int, Exception]) -> mx.array:
        """New logits (B, V) by those there are, float32. A row whose own processors raise is put into `failed`."""
        if self._biases is not None:
            places, values = self._biases
            logits = logits.at[places].add(values)
        if self._penalties:
            age = mx.arange(self._history.shape[1], 0, -1)  # of the last token: 1
        for kind, penalty, rows in self._penalties:
            window = mx.array([[row.window(count)] for row, count in zip(rows, self._counts, strict=True)])
            counted = (self._history != NOTHING) & (age <= window)
            logits = kind.penalized(logits, self._history, penalty, counted)
        for i, processors in enumerate(self._own):
            if processors and i not in failed:
                tokens, row = self._history[i, self._history.shape[1] - self._lengths[i] :], logits[i : i + 1]
                try:
                    for processor in processors:
                        row = processor(tokens, row)
                    logits[i : i + 1] = row
                except Exception as error:
                    failed[i] = error
        return logits


def _shared(processors: Sequence[LogitsProcessor]) -> list[LogitsProcessor]:
    """Those, from the first one on, that stand in the order in which rows share them."""
    kinds = iter(SHARED)
    return list(takewhile(lambda processor: type(processor) in kinds, processors))


def _penalties(
    shared: Sequence[Sequence[LogitsProcessor]], kind: type[RecentPenalty]
) -> tuple[mx.array, list[RecentPenalty]] | None:
    """Each row's penalty of a kind, neutral where it has none, as (B, 1) too; None if no row has one."""
    none = kind(kind.NEUTRAL, 1)
    found = [next((p for p in row if isinstance(p, kind)), none) for row in shared]
    if all(penalty is none for penalty in found):
        return None
    return mx.array([[float(p.penalty)] for p in found]), found


def _biases(
    shared: Sequence[Sequence[LogitsProcessor]], vocab_size: int
) -> tuple[tuple[mx.array, mx.array], mx.array] | None:
    """Where in (B, V) something is added, and what, (n,); None if nowhere."""
    biases = [(i, p) for i, row in enumerate(shared) for p in row if isinstance(p, LogitBias)]
    for _, processor in biases:
        processor.check(vocab_size)
    found = [(i, token, bias) for i, processor in biases for token, bias in processor.biases.items()]
    if not found:
        return None
    rows, tokens, values = zip(*found, strict=True)
    return (mx.array(rows), mx.array(tokens)), mx.array(values, mx.float32)
