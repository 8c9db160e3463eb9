"""Speculative decoding of a row of a batch while it is the only one."""

import time
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx

from ..cache import Cache
from ..models import CausalLM
from .drafts import Drafter
from .loop import Chooser, token_id
from .requests import Request
from .rows import Choice
from .speculate import Drawn, SpeculativeDecoder, Tally


class LoneRow(SpeculativeDecoder):
    """The `requests.Ahead` of a row whose `choose` is a `Choice`, without a guide.

    Whatever it does, the row is left as after a plain step: what was handed out is in the cache, one token is drawn. So
    company may come at any time; the randomness is the row's, which goes on where it was.
    """

    def __init__(
        self,
        model: CausalLM,
        choice: Choice,
        drafter: Drafter,
        tally: Tally,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        choose = Chooser(choice.sampler, choice.processors, ())
        # cache and limit are those of the row at each step
        super().__init__(model, model.make_cache(), choose, drafter, limit=0, tally=tally, clock=clock)
        self._known: int | None = None  # tokens of the answer that the drafter knows; None: nor the prompt
        self._is_awaited = False  # whether the step before was awaited, for the sake of guesses

    def run(self, row: Request, cache: Cache, token: mx.array) -> list[Drawn]:
        self._lap()
        self._cache, self._ends, self._is_awaited = cache, row.ends, False
        self._meet(row)
        count = self._draft_length(row.limit - len(row.answer) - 2)
        if not count or not self._catch_up():
            return []
        drawn, self._is_awaited = token_id(token), True
        self._pace.idle(self._lap())
        self._tell([drawn])
        draft = [] if drawn in row.ends else self._propose_after(row, drawn, count)
        if not draft:
            return []
        found = self._verify(drawn, draft)
        row.choose = replace(row.choose, sampler=self._choose.sampler)
        self._tell([guess for guess, _ in found[:-1]])
        self._pace.drafted(len(draft), len(found) - 1, self._lap())
        return found

    def ran_plainly(self) -> None:
        (self._pace.idle if self._is_awaited else self._pace.plain)(self._lap())

    def _meet(self, row: Request) -> None:
        """Tell the drafter what is new; after company it catches up as with a prompt, not on the account."""
        known, self._known = self._known, len(row.answer)
        if known is None:
            self._drafter.begin(row.tokens)
        else:
            self._drafter.extend(row.answer[known:])
        if known is None or known < len(row.answer) - 1:
            self._catch_up()
            self._lap()

    def _propose_after(self, row: Request, token: int, count: int) -> list[int]:
        self._choose = Chooser(row.choose.sampler, row.choose.processors, [*row.tokens, token])
        return self._propose(count)

    def _tell(self, tokens: list[int]) -> None:
        """Tell the drafter tokens that are about to be handed out."""
        assert self._known is not None
        self._drafter.extend(tokens)
        self._known += len(tokens)
