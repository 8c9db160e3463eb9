"""Logits processors: what the tokens so far make of the next one's logits, lazily and on the device.

Meanings and order are those of `mlx_lm.sample_utils.make_logits_processors`; `no_repeat_ngram_size` is Transformers'.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError
from .options import SamplingOptions

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


def make_logits_processors(options: SamplingOptions) -> list[LogitsProcessor]:
    """Functions from the tokens so far (n,) and logits (B, V) to new logits, to apply in order before sampling."""
    found: list[LogitsProcessor] = []
    if options.logit_bias:
        found.append(LogitBias(options.logit_bias))
    if options.repetition_penalty != 1:
        found.append(RepetitionPenalty(options.repetition_penalty, options.repetition_context_size))
    if options.presence_penalty != 0:
        found.append(PresencePenalty(options.presence_penalty, options.presence_context_size))
    if options.frequency_penalty != 0:
        found.append(FrequencyPenalty(options.frequency_penalty, options.frequency_context_size))
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
        self._bounds = (min(biases), max(biases))
        self._ids, self._biases = mx.array(list(biases)), mx.array(list(biases.values()), mx.float32)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        check_token_ids(self._bounds, logits.shape[-1], "logit_bias")  # MLX does not check the bounds of an index
        return logits.astype(mx.float32).at[..., self._ids].add(self._biases)


@dataclass(frozen=True)
class RecentPenalty(PureProcessor):
    """Moves the logits of the last `context_size` tokens, or of all if that is 0."""

    penalty: float
    context_size: int

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        recent, logits = tokens[-self.context_size :], logits.astype(mx.float32)
        return self.penalized(logits, recent) if recent.size else logits

    @abstractmethod
    def penalized(self, logits: mx.array, recent: mx.array) -> mx.array:
        """New logits (B, V) by those there are and the tokens (n,) that count, one at least."""


class RepetitionPenalty(RecentPenalty):
    """Makes recent tokens less likely: positive logits are divided by `penalty`, others multiplied."""

    def penalized(self, logits: mx.array, recent: mx.array) -> mx.array:
        recent = mx.broadcast_to(recent, (*logits.shape[:-1], recent.size))
        found = mx.take_along_axis(logits, recent, axis=-1)
        found = mx.where(found < 0, found * self.penalty, found / self.penalty)
        # A repeated token is written twice with the same value.
        return mx.put_along_axis(logits, recent, found, axis=-1)


class PresencePenalty(RecentPenalty):
    """Subtracts `penalty` from the logit of each recent token, as OpenAI defines it but for the window."""

    def penalized(self, logits: mx.array, recent: mx.array) -> mx.array:
        return logits - self.penalty * (_counts(recent, logits.shape[-1]) > 0)


class FrequencyPenalty(RecentPenalty):
    """Subtracts `penalty` from a token's logit as often as it is among the recent ones."""

    def penalized(self, logits: mx.array, recent: mx.array) -> mx.array:
        return logits - self.penalty * _counts(recent, logits.shape[-1])


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
        forbidden = _counts(lasts, logits.shape[-1], repeats) > 0
        return mx.where(forbidden, -mx.inf, logits)


def _counts(tokens: mx.array, vocab_size: int, among: mx.array | None = None) -> mx.array:
    """(V,) how often each token is among `tokens`, of which those alone count where `among` is true, if it is given."""
    ones = mx.ones(tokens.shape) if among is None else among.astype(mx.float32)
    return mx.zeros(vocab_size).at[tokens].add(ones)
