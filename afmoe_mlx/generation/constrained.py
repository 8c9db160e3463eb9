"""Decoding under a constraint: tokens that must come go through the model together, the others are drawn as ever.

A mask needs the token before it, so the host reads each token; the device computes what follows that token meanwhile,
and the host the mask. Guesses are cut where the constraint forbids them, and what it forces after a guess is run along.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import eq
from typing import Any

import mlx.core as mx

from .constraint import Constraint
from .loop import Chooser, token_id
from .speculate import Drawn, SpeculativeDecoder

# Tokens that are run in one step beside those that are certain.
MOST_AHEAD = 16


class NoDrafter:
    """Guesses nothing."""

    most = 0
    behind = 0

    def begin(self, tokens: Sequence[int]) -> None: ...

    def extend(self, tokens: Sequence[int]) -> None: ...

    def is_ready(self) -> bool:
        return False

    def propose(self, count: int, choose: Chooser) -> list[int]:
        return []


@dataclass
class Walk:
    """Guesses that a constraint allows, one after the other."""

    guesses: list[int] = field(default_factory=list)
    forced: list[list[int]] = field(default_factory=list)
    """After each of them, the tokens that must follow it."""
    masks: list[mx.array] = field(default_factory=list)
    """Before each of them, and at the end."""

    @property
    def tokens(self) -> list[int]:
        """All of it, to be run."""
        return [token for guess, more in zip(self.guesses, self.forced, strict=True) for token in (guess, *more)]

    @property
    def places(self) -> list[int]:
        """Before how many of the tokens each mask holds."""
        places = [0]
        for more in self.forced:
            places.append(places[-1] + 1 + len(more))
        return places


class ConstrainedDecoder(SpeculativeDecoder):
    """`decode` and `SpeculativeDecoder` under a constraint, for one answer.

    A seed gives the same tokens with and without guesses. make: makes the constraint, once the prompt has been run,
    which begins after the first `begun` tokens; or, for True, that of what follows a reasoning.
    """

    def __init__(self, *arguments: Any, make: Callable[..., Constraint], begun: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._make, self._begun = make, begun
        self._end = begun + self._limit

    @cached_property
    def constraint(self) -> Constraint:
        return self._make()

    def continued(self, tokens: Sequence[int], logits: mx.array, limit: int) -> Iterator[Drawn]:
        if len(tokens) > self._begun + self.constraint.count:
            # a budget has closed the reasoning, within a character even, which no grammar allows
            self.constraint, self._begun = self._make(True), len(tokens)
        self._spare = self._end - len(tokens) - limit  # tokens that the answer may take beyond those wanted now
        return super().continued(tokens, logits, limit)

    def tokens(self, logits: mx.array) -> Iterator[Drawn]:
        rest: list[int] = []  # tokens that were handed out and not run yet
        left, is_ahead = self._limit, False
        self._catch_up()
        self._lap()
        while left > 0:
            if forced := self._force(left):
                yield from self._certain(forced, logits)
                rest, left, is_ahead = [*rest, *forced], left - len(forced), False
            elif rest and (walk := self._walk(rest, left)).guesses:
                found = self._verified(rest, walk, left)
                rest, left, is_ahead = [found[-1][0]], left - len(found), False
                yield from self._hand_out(found)
            else:
                if rest:
                    logits = self._model(mx.array([rest]), cache=self._cache, logits_to_keep=1)[:, -1]
                    self._count_step()
                drawn = self._choose(logits, self.constraint.mask())
                mx.async_eval(*drawn, self._choose.history)
                was_ahead, is_ahead = is_ahead, left > 1 and not self._drafts(left)
                if is_ahead:
                    logits = self._model(drawn[0][:, None], cache=self._cache)[:, -1]
                    mx.async_eval(logits)
                    self._count_step()
                token = token_id(drawn[0])
                rest, left = [] if is_ahead else [token], left - 1
                self.constraint.advance(token)
                seconds = self._lap()
                if was_ahead:
                    self._pace.plain(seconds)
                yield from self._hand_out([(token, drawn[1])])

    def _force(self, most: int) -> list[int]:
        """The tokens that must come now, `most` of them at most; the constraint and the draws then go on after them."""
        forced = self.constraint.forced(most + self._spare)[:most]
        for token in forced:
            self.constraint.advance(token)
        self._choose.take(forced)
        return forced

    def _certain(self, tokens: Sequence[int], logits: mx.array) -> Iterator[Drawn]:
        """Hand out tokens that are not in the cache yet; logits (1, vocab): any that the model gave, for the shape."""
        self._drafter.extend(tokens)
        for token in tokens:
            yield token, _certainty(token, logits)
        self._lap()

    def _drafts(self, left: int) -> bool:
        """Whether guesses are likely to be made after the next token, which then is not run alone."""
        return self._drafter.most > 0 and self._draft_length(left - 2) > 0 and self._catch_up()

    def _walk(self, rest: Sequence[int], left: int) -> Walk:
        """Guesses for what follows `rest`, as far as the constraint allows them: no more than can be taken back."""
        count = self._draft_length(left - 1)
        room = min(MOST_AHEAD, left - 1, self._cache.rewindable_after(len(rest) + MOST_AHEAD))
        walk = Walk()
        if count <= 0 or room <= 0 or not (draft := self._propose(count)):
            return walk
        trial, tokens = self.constraint.copy(), 0
        walk.masks.append(trial.mask())
        while draft:
            guess = draft.pop(0)
            # where it ends there is nothing to run, and nothing to draw
            if guess in self._ends or not trial.accepts(guess) or trial.is_finished:
                break
            forced = trial.forced(left + self._spare - tokens - 1)
            tokens += 1 + len(forced)
            if tokens > room or not all(map(trial.accepts, forced)) or trial.is_finished:
                break
            walk.guesses.append(guess)
            walk.forced.append(forced)
            walk.masks.append(trial.mask())
            draft = draft[len(forced) :] if all(map(eq, draft, forced)) else []  # what was forced has been guessed, too
        if not walk.guesses:
            self._pace.idle(self._lap())
        return walk

    def _verified(self, rest: Sequence[int], walk: Walk, left: int) -> list[Drawn]:
        """Run `rest` and the walk; the tokens found, of `left` at most, all but the last of them in the cache."""
        before, ahead = self._cache.offset, walk.tokens
        found: list[Drawn] = []
        try:
            logits = self._model(mx.array([[*rest, *ahead]]), cache=self._cache)[0, len(rest) - 1 :]
            drawn = self._choose.agreeing(
                logits[mx.array(walk.places)], walk.guesses, masks=walk.masks, forced=walk.forced
            )
            for pair, forced in zip(drawn[:-1], walk.forced, strict=False):
                found += [pair, *((token, _certainty(token, logits[:1])) for token in forced)]
            found.append(drawn[-1])
        finally:  # interrupted, too, no wrong token stays
            self._take_back(self._cache.offset - before - len(rest) - max(len(found) - 1, 0))
        for i, (token, _) in enumerate(drawn):
            self.constraint.advance(token)
            left -= 1
            for token in self.constraint.forced(left + self._spare) if i < len(drawn) - 1 else ():
                self.constraint.advance(token)
                left -= 1
        self._count_step()
        self._tally.drafted += len(walk.guesses)
        self._tally.accepted += len(drawn) - 1
        self._pace.drafted(len(walk.guesses), len(drawn) - 1, self._lap())
        return found


def _certainty(token: int, logits: mx.array) -> mx.array:
    """(vocab,) log-probabilities where one token is certain; no numbers where the model's own (1, vocab) are none."""
    logits = logits[0].astype(mx.float32)
    return mx.where(mx.arange(logits.size) == token, logits - logits, -mx.inf)
