"""`RowChooser`: the next tokens of several rows at once, each what a `Chooser` of its own would draw.

What rows were asked for is prepared as arrays when rows join or leave; a step then takes as many operations for all as
for one. A row's randomness is its sampler's, so that company changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from .draws import Draws
from .processors import LogitsProcessor
from .requests import Chosen, Request
from .row_processors import RowProcessors
from .sampling import Sampler


class Guide(Protocol):
    """What a row's tokens are held to, beside its sampler."""

    def follow(self, row: Request) -> int | None:
        """Learn its answer so far; the token that comes next without a draw, None where one is drawn."""

    def mask(self) -> mx.array | None:
        """Which tokens may come next, (vocab,) bool, at least one; None for all."""


@dataclass(frozen=True)
class Choice:
    """How a row's tokens are chosen: what `Request.choose` is to a `RowChooser`."""

    sampler: Sampler
    processors: Sequence[LogitsProcessor] = ()
    guide: Guide | None = None


class RowChooser:
    """The `RowSampler` of requests whose `choose` is a `Choice`; a row fails by what its functions and guide raise.

    What it has prepared serves as long as the rows stay the same and have a token more at each call.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Request, int]] = []  # the rows of the last call, and how long their answers were
        self._steps: tuple[RowProcessors, Draws] | None = None

    def __call__(self, logits: mx.array, rows: Sequence[Request]) -> Chosen:
        """The next token of each row, by the logits (B, vocab) of all."""
        process, draw = self._prepared(rows, logits.shape[-1])
        failed: dict[int, Exception] = {}
        given, masks = _guided(rows, failed)
        allowed = logits = logits.astype(mx.float32)
        if masks:
            is_masked, mask = _stacked(masks, logits.shape)
            allowed = mx.where(mask, logits, -mx.inf)
        logits = process(mx.array(allowed), failed)
        if masks:  # processors can neither allow what a mask forbids nor forbid all that it allows
            logits = mx.where(mask, logits, -mx.inf)
            logits = mx.where((logits > -mx.inf).any(axis=-1, keepdims=True) | ~is_masked, logits, allowed)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return Chosen(draw(logprobs, given, failed), logprobs, failed)

    def _prepared(self, rows: Sequence[Request], vocab_size: int) -> tuple[RowProcessors, Draws]:
        if self._steps is not None and self._known == [(row, len(row.answer) - 1) for row in rows]:
            self._steps[0].extend([row.answer[-1] for row in rows])
        else:
            choices: list[Choice] = [row.choose for row in rows]
            tokens = [row.tokens for row in rows]
            processors = RowProcessors([choice.processors for choice in choices], tokens, vocab_size)
            self._steps = processors, Draws([choice.sampler for choice in choices], vocab_size)
        self._known = [(row, len(row.answer)) for row in rows]
        return self._steps


def _guided(rows: Sequence[Request], failed: dict[int, Exception]) -> tuple[dict[int, int], dict[int, mx.array]]:
    """The tokens that some rows take without a draw, and some rows' masks."""
    given, masks = {}, {}
    for i, row in enumerate(rows):
        if row.choose.guide is None:
            continue
        try:
            if (token := row.choose.guide.follow(row)) is not None:
                given[i] = token
            if (mask := row.choose.guide.mask()) is not None:
                masks[i] = mask
        except Exception as error:
            failed[i] = error
    return given, masks


def _stacked(masks: Mapping[int, mx.array], shape: Sequence[int]) -> tuple[mx.array, mx.array]:
    """Which rows have a mask (B, 1), and the masks of all (B, V)."""
    every = mx.ones(shape[1:], mx.bool_)
    is_masked = mx.array([[i in masks] for i in range(shape[0])])
    return is_masked, mx.stack([masks.get(i, every) for i in range(shape[0])])
