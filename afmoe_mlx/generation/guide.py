"""What holds a row of a batch to its reasoning budget and its constraint, a token at a time.

Alone, `decode_within` and `ConstrainedDecoder` run tokens that need no draw together; in a batch they take a step each,
beside the other rows. They are the same tokens, and take no randomness in either.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import mlx.core as mx

from .budget import ReasoningBudget
from .constraint import Constraint
from .requests import Request


class AnswerGuide:
    """The `rows.Guide` of an answer. make: makes its constraint, as for a `ConstrainedDecoder`."""

    def __init__(
        self, vocab_size: int, budget: ReasoningBudget | None = None, make: Callable[..., Constraint] | None = None
    ) -> None:
        self._vocab_size, self._budget, self._make = vocab_size, budget, make
        self._known = 0  # tokens of the answer
        self._closing: list[int] = []  # tokens to come that close the reasoning
        self._is_closing = False  # whether the token under way does
        self._forced: list[int] = []  # tokens to come that the constraint forces
        self._certain: int | None = None  # the token under way, if it is one of these

    @cached_property
    def constraint(self) -> Constraint | None:
        return None if self._make is None else self._make()

    def learn(self, answer: Sequence[int]) -> None:
        """Learn the answer so far."""
        for token in answer[self._known :]:
            if self._is_closing:  # told to no one: the reasoning is over, within a character even
                continue
            if self.constraint is not None:
                self.constraint.advance(token)
            if self._budget is not None:
                self._budget.push(token)
        self._known = len(answer)

    def follow(self, row: Request) -> int | None:
        """Learn a row's answer so far; the token that comes next without a draw, None where one is drawn."""
        self.learn(row.answer)
        if self._is_closing and not self._closing and self._make is not None:
            self.constraint = self._make(True)
        if not self._closing and self._budget is not None and self._budget.reach == 0:
            self._closing, self._forced = self._budget.close(), []
        self._is_closing, self._certain = bool(self._closing), None
        if self._closing:
            return self._closing.pop(0)
        if not self._forced and self.constraint is not None:
            self._forced = self.constraint.forced(row.limit - len(row.answer))
        if self._forced:
            self._certain = self._forced.pop(0)
        return self._certain

    def mask(self) -> mx.array | None:
        """Which tokens may come next, (vocab,) bool; None for all."""
        if self._certain is not None:
            return mx.arange(self._vocab_size) == self._certain
        return None if self.constraint is None or self._is_closing else self.constraint.mask()
