"""What holds a row of a batch to its reasoning budget and its constraint, a token at a time.

Alone, `decode_within` and `ConstrainedDecoder` run tokens that need no draw together; in a batch they take a step each,
beside the other rows. They are the same tokens, and take no randomness in either.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import mlx.core as mx

from .budget import ReasoningBudget
from .constraint import Constraint


class AnswerGuide:
    """The `rows.Guide` of an answer; `make` makes its constraint, when its prompt has been read."""

    def __init__(
        self, vocab_size: int, budget: ReasoningBudget | None = None, make: Callable[[], Constraint] | None = None
    ) -> None:
        self._vocab_size, self._budget, self._make = vocab_size, budget, make
        self._known = 0  # tokens of the answer
        self._closing: list[int] = []  # that close the reasoning
        self._forced: list[int] = []  # by the constraint
        self._is_closing = False  # whether the token that comes is one of the former
        self._certain: int | None = None  # it, if it is one of the latter

    @cached_property
    def _constraint(self) -> Constraint | None:
        return None if self._make is None else self._make()

    @property
    def is_complete(self) -> bool:
        """Whether the answer, as far as it is known, satisfies the constraint."""
        return self._constraint is None or self._constraint.is_complete

    def learn(self, answer: Sequence[int]) -> None:
        """Learn the answer so far."""
        for token in answer[self._known :]:
            if self._constraint is not None:
                self._constraint.advance(token)
            if self._budget is not None and not self._is_closing:
                self._budget.push(token)
        self._known = len(answer)

    def follow(self, answer: Sequence[int]) -> int | None:
        """Learn the answer so far; the token that comes next without a draw, None where one is drawn."""
        self.learn(answer)
        if not self._closing and self._budget is not None and self._budget.reach == 0:
            self._closing, self._forced = self._budget.close(), []
        self._is_closing = bool(self._closing)
        if self._closing:
            self._certain = None
            return self._closing.pop(0)
        if not self._forced and self._constraint is not None:
            self._forced = self._constraint.forced()
        self._certain = self._forced.pop(0) if self._forced else None
        return self._certain

    def mask(self) -> mx.array | None:
        """Which tokens the constraint allows next, (vocab,) bool; None for all."""
        if self._certain is not None:
            return mx.arange(self._vocab_size) == self._certain
        return None if self._constraint is None or self._is_closing else self._constraint.mask()
