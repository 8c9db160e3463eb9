"""The next tokens of several rows at once, each the one that a `Chooser` of its own would draw from the same logits.

Rows share the steps of sampling: what each was asked for lies in arrays, made when rows join or leave, with numbers
that change nothing for a row that was not asked. A row's randomness is its sampler's, so that company changes nothing.
What is not known here runs row by row: a user's own sampler or processors, and n-grams.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import mlx.core as mx

from .draws import Draws
from .processors import (
    FrequencyPenalty,
    LogitBias,
    LogitsProcessor,
    PresencePenalty,
    RecentPenalty,
    RepetitionPenalty,
)
from .sampling import Sampler

# The processors that rows share, in the order in which `make_logits_processors` has them.
PENALTIES: tuple[type[RecentPenalty], ...] = (RepetitionPenalty, PresencePenalty, FrequencyPenalty)
SHARED = (LogitBias, *PENALTIES)

# In a history, before the first token of a row: to MLX the vocabulary's last token, never counted.
NOTHING = -1


@dataclass(frozen=True)
class Row:
    """How one row's tokens are drawn, by what a `Chooser` takes; `tokens` are those before, at least one."""

    sampler: Sampler
    processors: Sequence[LogitsProcessor] = ()
    tokens: Sequence[int] = ()

    @cached_property
    def shared(self) -> list[LogitsProcessor]:
        """The processors, from the first one on, that stand in the order in which rows share them."""
        kinds = iter(SHARED)
        return list(takewhile(lambda processor: type(processor) in kinds, self.processors))

    @cached_property
    def own(self) -> Sequence[LogitsProcessor]:
        """The others, which run on this row alone."""
        return self.processors[len(self.shared) :]

    @cached_property
    def reach(self) -> float:
        """How many of the last tokens its processors look at."""
        windows = [p.context_size or math.inf for p in self.shared if isinstance(p, RecentPenalty)]
        return math.inf if self.own else max(windows, default=0)


class RowChooser:
    """Draws the next token of each row, and knows those before for the processors.

    What it gives is to be evaluated along with `history`: another thread, which may ask for the next, could not.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._lengths: list[int] = []  # of the rows' tokens, drawn ones too
        self._prepared: tuple[_Processing, Draws] | None = None
        self.history = mx.zeros((0, 0), mx.int32)
        """(B, n): the last tokens of each row, as many as any row looks at; `NOTHING` before its first."""

    def add(self, row: Row) -> None:
        """Let a row join, as the last."""
        width = max(self.history.shape[1], len(row.tokens))
        joining = mx.array([list(row.tokens)], mx.int32)
        self.history = mx.concatenate([_padded(self.history, width), _padded(joining, width)])
        self._set([*self._rows, row], [*self._lengths, len(row.tokens)])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows, in this order."""
        self.history = self.history[mx.array(list(rows), mx.int32)]
        self._set([self._rows[i] for i in rows], [self._lengths[i] for i in rows])

    def __call__(self, logits: mx.array, given: Mapping[int, int] | None = None) -> tuple[mx.array, mx.array]:
        """The next tokens (B,), by the logits (B, vocab), and the log-probabilities (B, vocab).

        given: rows that take a token without a draw, and which.
        """
        if self._prepared is None:
            vocab_size, samplers = logits.shape[-1], [row.sampler for row in self._rows]
            self._prepared = _Processing(self._rows, vocab_size), Draws(samplers, vocab_size)
        process, draw = self._prepared
        logits = self._processed_apart(process(logits.astype(mx.float32), self.history))
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        tokens = draw(logprobs, given or {})
        self._note(tokens)
        return tokens, logprobs

    def _processed_apart(self, logits: mx.array) -> mx.array:
        for i, row in enumerate(self._rows):
            for processor in row.own:
                tokens = self.history[i, self.history.shape[1] - self._lengths[i] :]
                logits[i] = processor(tokens, logits[i : i + 1])[0]
        return logits

    def _note(self, tokens: mx.array) -> None:
        self._lengths = [length + 1 for length in self._lengths]
        if any(row.reach for row in self._rows):
            self.history = mx.concatenate([self.history, tokens[:, None].astype(mx.int32)], axis=1)
            self._forget()

    def _set(self, rows: list[Row], lengths: list[int]) -> None:
        self._rows, self._lengths, self._prepared = rows, lengths, None
        self._forget()

    def _forget(self) -> None:
        """Keep of the history what some row still looks at."""
        seen = [min(row.reach, length) for row, length in zip(self._rows, self._lengths, strict=True)]
        self.history = self.history[:, self.history.shape[1] - int(max(seen, default=0)) :]


def _padded(history: mx.array, width: int) -> mx.array:
    return mx.pad(history, [(0, 0), (width - history.shape[1], 0)], constant_values=NOTHING)


class _Processing:
    """The processors that rows share, as arrays."""

    def __init__(self, rows: Sequence[Row], vocab_size: int) -> None:
        self._penalties = [(kind, *found) for kind in PENALTIES if (found := _penalties(rows, kind)) is not None]
        biases = [(i, p) for i, row in enumerate(rows) for p in row.shared if isinstance(p, LogitBias)]
        for _, processor in biases:
            processor.check(vocab_size)
        self._biases = [(i, token, bias) for i, p in biases for token, bias in p.biases.items()]
        if self._biases:
            rows_of, tokens, values = zip(*self._biases, strict=True)
            self._places, self._values = (mx.array(rows_of), mx.array(tokens)), mx.array(values, mx.float32)

    def __call__(self, logits: mx.array, history: mx.array) -> mx.array:
        """New logits (B, V) float32, by those there are and the rows' last tokens (B, n)."""
        if self._biases:
            logits = logits.at[self._places].add(self._values)
        if self._penalties:
            age = mx.arange(history.shape[1], 0, -1)  # of the last token: 1
        for kind, penalty, window in self._penalties:
            counted = (history != NOTHING) & (age <= window)
            logits = kind.penalized(logits, history, penalty, counted)
        return logits


def _penalties(rows: Sequence[Row], kind: type[RecentPenalty]) -> tuple[mx.array, mx.array] | None:
    """Each row's penalty of a kind, neutral where it has none, and its window, as (B, 1); None if no row has one."""
    found = [next((p for p in row.shared if isinstance(p, kind)), kind(kind.NEUTRAL, 1)) for row in rows]
    if all(p.penalty == kind.NEUTRAL for p in found):
        return None
    everything = mx.iinfo(mx.int32).max
    windows = [[min(p.context_size or everything, everything)] for p in found]
    return mx.array([[float(p.penalty)] for p in found]), mx.array(windows, mx.int32)
