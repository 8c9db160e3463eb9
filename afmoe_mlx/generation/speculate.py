"""Speculative decoding: drafted tokens are verified in one step, and kept as far as sampling would have drawn them.

Each position's token is drawn from the model's own logits as plain decoding draws it, by the same sampler in the same
order, and a guess is accepted if it is that token. So a seed gives the tokens of plain decoding, whatever was guessed
and whenever. A guess is thereby accepted with the probability that the model gives it, which is rejection sampling for
a guess that is certain; a draft model draws its guesses with the same randomness, so that the two agree often where
their distributions are alike.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..cache import Cache
from ..models import CausalLM
from .drafts import Drafter
from .loop import CLEAR_EVERY, Chooser, token_id
from .pace import Pace

Drawn = tuple[int, mx.array]


@dataclass
class Tally:
    """Counts of speculative decoding: tokens drafted and accepted, and steps taken."""

    drafted: int = 0
    """Tokens guessed and run."""
    accepted: int = 0
    """Those that were right."""
    steps: int = 0
    """Passes through the model since the prompt's."""


class SpeculativeDecoder:
    """`decode` with tokens of a drafter run ahead, for one answer."""

    def __init__(
        self,
        model: CausalLM,
        cache: Cache,
        choose: Chooser,
        drafter: Drafter,
        *,
        limit: int,
        ends: Collection[int] = (),
        tally: Tally | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """For `tokens`, the drafter and `choose` know the tokens so far. limit: tokens to give. ends: tokens no guess
        goes beyond.
        """
        self._model, self._cache, self._choose, self._drafter = model, cache, choose, drafter
        self._limit, self._ends = limit, frozenset(ends)
        self._tally = tally or Tally()
        self._pace = pace or Pace(drafter.most)
        self._clock = clock
        self._mark = 0.0

    def tokens(self, logits: mx.array) -> Iterator[Drawn]:
        """As `decode`: what follows the tokens so far, given the logits (1, vocab) after them.

        When closed, it leaves no more in the cache than was yielded.
        """
        drawn = self._choose(logits)
        mx.async_eval(*drawn, self._choose.history)
        is_read, left = False, self._limit
        self._catch_up()  # with the prompt, as was asked for: it is not on the account
        self._lap()
        while left > (0 if is_read else 1):
            draft: list[int] = []
            count = self._draft_length(left - (1 if is_read else 2))
            if count and not is_read and self._catch_up():
                self._pace.idle(self._lap())
                yield from self._hand_out([(token_id(drawn[0]), drawn[1])])  # the last step is awaited
                is_read, left = True, left - 1
            if count and is_read:
                draft = self._propose(count)
            if draft:
                found = self._verify(token_id(drawn[0]), draft)
                self._pace.drafted(len(draft), len(found) - 1, self._lap())
                yield from self._hand_out(found)
                drawn, left = (mx.array([found[-1][0]]), found[-1][1]), left - len(found)
                continue
            following = self._choose(self._model(drawn[0][:, None], cache=self._cache)[:, -1])
            mx.async_eval(*following, self._choose.history)
            if is_read:
                self._pace.idle(self._lap())
            else:
                token = token_id(drawn[0])
                self._pace.plain(self._lap())
                yield from self._hand_out([(token, drawn[1])])
                left -= 1
            self._count_step()
            drawn, is_read = following, False
        if not is_read:
            yield token_id(drawn[0]), drawn[1]

    def continued(self, tokens: Sequence[int], logits: mx.array, limit: int) -> Iterator[Drawn]:
        """`limit` tokens after these, whatever was given before; the randomness and the pace go on where they were."""
        self._choose.begin(tokens)
        self._drafter.begin(tokens)
        self._limit = limit
        return self.tokens(logits)

    def _draft_length(self, most: int) -> int:
        """How many tokens to guess, where `most` are wanted: no more than can be taken back."""
        count = self._pace.length(min(most, self._drafter.most), behind=self._drafter.behind)
        return min(count, self._cache.rewindable_after(count + 1))

    def _catch_up(self) -> bool:
        """Let the drafter read what it is behind with; whether it is ready."""
        behind, began = self._drafter.behind, self._clock()
        is_ready = self._drafter.is_ready()
        self._pace.caught_up(behind, self._clock() - began)
        return is_ready

    def _propose(self, count: int) -> list[int]:
        draft = self._drafter.propose(count, self._choose)
        end = next((i for i, token in enumerate(draft) if token in self._ends), len(draft))
        return draft[: end + 1]

    def _verify(self, token: int, draft: list[int]) -> list[Drawn]:
        """Run the last token and the draft; the tokens drawn, all but the last of them guessed, and in the cache."""
        before = self._cache.offset
        found: list[Drawn] = []
        try:
            logits = self._model(mx.array([[token, *draft]]), cache=self._cache)[0]
            found = self._choose.agreeing(logits, draft)
        finally:  # interrupted, too, no wrong token stays
            self._take_back(self._cache.offset - before - max(len(found), 1))
        self._count_step()
        self._tally.drafted += len(draft)
        self._tally.accepted += len(found) - 1
        return found

    def _hand_out(self, found: list[Drawn]) -> Iterator[Drawn]:
        """Yield tokens, the time until the next is wanted aside."""
        self._drafter.extend([token for token, _ in found])
        changes = self._cache.changes
        for i, drawn in enumerate(found):
            try:
                yield drawn
            except GeneratorExit:
                if self._cache.changes == changes:  # else it has been put to another use
                    self._take_back(len(found) - 2 - i)
                raise
        self._lap()

    def _take_back(self, count: int) -> None:
        if count > 0:
            self._cache.rewind(count)

    def _count_step(self) -> None:
        self._tally.steps += 1
        if self._tally.steps % CLEAR_EVERY == 0:
            mx.clear_cache()

    def _lap(self) -> float:
        """Seconds since the last call."""
        last, self._mark = self._mark, self._clock()
        return self._mark - last
