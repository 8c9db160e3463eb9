"""Logits processors: what the tokens so far make of the next one's logits, lazily and on the device.

Meanings and order are those of `mlx_lm.sample_utils.make_logits_processors`; `no_repeat_ngram_size` is Transformers'.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from ..errors import InputError
from .options import THE_ANSWER, SamplingOptions

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


def make_logits_processors(options: SamplingOptions, begun: int = 0) -> list[LogitsProcessor]:
    """Functions from the tokens so far (n,) and logits (B, V) to new logits, to apply in order before sampling.

    begun: how many of the tokens are not the answer's.
    """
    found: list[LogitsProcessor] = []
    if options.logit_bias:
        found.append(LogitBias(options.logit_bias))
    if options.repetition_penalty != 1:
        found.append(RepetitionPenalty(options.repetition_penalty, options.repetition_context_size))
    if options.presence_penalty != 0:
        found.append(PresencePenalty(options.presence_penalty, options.presence_context_size, begun))
    if options.frequency_penalty != 0:
        found.append(FrequencyPenalty(options.frequency_penalty, options.frequency_context_size, begun))
    if options.no_repeat_ngram_size:
        found.append(NoRepeatNGram(options.no_repeat_ngram_size))
    return found


def check_token_ids(tokens: Iterable[int], vocab_size: int, found: str) -> None:
    """InputError, which begins with `found`, for the id of a token that a model has not."""
    if unknown := [token for token in tokens if not 0 <= token < vocab_size]:
        raise InputError(f"{found} has token {unknown[0]}: expected ids from 0 to {vocab_size - 1}")


class PureProcessor(ABC):
    """A logits processor that keeps nothing from one call to the next."""

    @abstractmethod
    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array: ...


class LogitBias(PureProcessor):
    """Adds a number to the logits of some tokens; InputError for one that is not among the logits."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self.biases = biases
        self._bounds = (min(biases), max(biases))
        self._ids, self._biases = mx.array(list(biases)), mx.array(list(biases.values()), mx.float32)

    def check(self, vocab_size: int) -> None:
        """InputError for a token that is not in the vocabulary: MLX does not check the bounds of an index."""
        check_token_ids(self._bounds, vocab_size, "logit_bias")

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self.check(logits.shape[-1])
        return logits.astype(mx.float32).at[..., self._ids].add(self._biases)


@dataclass(frozen=True)
class RecentPenalty(PureProcessor):
    """Moves the logits of the last `context_size` tokens: of all if that is 0, if THE_ANSWER of all but `begun`."""

    penalty: float
    context_size: int
    begun: int = 0

    NEUTRAL: ClassVar[float] = 0.0
    """The penalty that changes nothing."""

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        recent, logits = tokens[tokens.size - self.window(tokens.size) :], logits.astype(mx.float32)
        return self.penalized(logits, recent[None], self.penalty) if recent.size else logits

    def window(self, count: int) -> int:
        """How many of so many tokens it looks at, the last."""
        if self.context_size == THE_ANSWER:
            return max(count - self.begun, 0)
        return min(self.context_size or count, count)

    @staticmethod
    @abstractmethod
    def penalized(
        logits: mx.array, recent: mx.array, penalty: float | mx.array, counted: mx.array | None = None
    ) -> mx.array:
        """New logits (B, V) by those there are and the tokens (B or 1, n) that count, one at least.

        penalty: of all rows, or (B, 1). counted: (B, n) which of the tokens count, the last in any case.
        """


class RepetitionPenalty(RecentPenalty):
    """Makes recent tokens less likely: positive logits are divided by `penalty`, others multiplied."""

    NEUTRAL = 1.0

    @staticmethod
    def penalized(
        logits: mx.array, recent: mx.array, penalty: float | mx.array, counted: mx.array | None = None
    ) -> mx.array:
        if counted is not None:
            recent = mx.where(counted, recent, recent[:, -1:])
        recent = mx.broadcast_to(recent, (*logits.shape[:-1], recent.shape[-1]))
        found = mx.take_along_axis(logits, recent, axis=-1)
        found = mx.where(found < 0, found * penalty, found / penalty)
        # A repeated token is written twice with the same value.
        return mx.put_along_axis(logits, recent, found, axis=-1)


class PresencePenalty(RecentPenalty):
    """Subtracts `penalty` from the logit of each recent token, as OpenAI defines it but for the window."""

    @staticmethod
    def penalized(
        logits: mx.array, recent: mx.array, penalty: float | mx.array, counted: mx.array | None = None
    ) -> mx.array:
        return logits - penalty * (_counts(recent, logits.shape[-1], counted) > 0)


class FrequencyPenalty(RecentPenalty):
    """Subtracts `penalty` from a token's logit as often as it is among the recent ones."""

    @staticmethod
    def penalized(
        logits: mx.array, recent: mx.array, penalty: float | mx.array, counted: mx.array | None = None
    ) -> mx.array:
        return logits - penalty * _counts(recent, logits.shape[-1], counted)


@dataclass(frozen=True)
class NoRepeatNGram(PureProcessor):
    """Forbids each token that would end `size` tokens in a row which are there already, in the prompt or after it.

    As Transformers' NoRepeatNGramLogitsProcessor.
    """

    size: int

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        count, logits = tokens.size - self.size + 1, logits.astype(mx.float32)
        if count <= 0:
            return logits
        lasts, repeats = tokens[self.size - 1 :], mx.ones(count, mx.bool_)
        if self.size > 1:
            begun = tokens[mx.arange(count)[:, None] + mx.arange(self.size - 1)]
            repeats = (begun == tokens[count:]).all(axis=-1)
        forbidden = _counts(lasts[None], logits.shape[-1], repeats[None]) > 0
        return mx.where(forbidden, -mx.inf, logits)


def _counts(tokens: mx.array, vocab_size: int, among: mx.array | None = None) -> mx.array:
    """(B, V) how often each token is among a row of `tokens` (B, n), where `among` (B, n), if given, is true."""
    ones = mx.ones(tokens.shape) if among is None else among.astype(mx.float32)
    rows = mx.arange(tokens.shape[0])[:, None]
    return mx.zeros((tokens.shape[0], vocab_size)).at[rows, tokens].add(ones)
