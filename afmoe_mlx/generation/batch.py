"""`BatchEngine`: several sequences at once, which come and go between steps.

A request's prompt is read in chunks, in a cache of its own, between the steps of the rows that decode; then it joins a
group of rows of similar length. The device is kept busy as in `loop.decode`: the next step of all rows is under way
before their tokens are read.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import mlx.core as mx

from ..cache import Cache, PrefixStore, Row, regroup, row_kind, row_lengths, row_of
from ..errors import InputError
from ..models import CausalLM
from .chunk_budget import ChunkBudget
from .grouping import arrange
from .loop import CLEAR_EVERY, CLEAR_PROMPT_EVERY
from .options import check_count
from .prompt import as_token_ids, room_after
from .prompt_reader import PromptReader
from .requests import Ahead, Chosen, Event, Pending, Request, RowSampler, greedy_rows

# Answers that are written at once, unless told.
MAX_ROWS = 16
# How long rows that decode may be delayed by prompts at each step, unless told.
CHUNK_SECONDS = 0.1


class BatchEngine:
    """Answers to several prompts at once, a token of each a step; each gets the tokens that it would get alone.

    sampler: chooses the next tokens of all rows. max_rows: requests begun and not over; the others wait. It is 1 where
    the model does not take more (`CausalLM.takes_batches`).
    prefill_step_size: prompt tokens run at a time, by default what suits the device. chunk_seconds: how long rows that
    decode may be delayed by prompts at each step. store: of this model; the beginnings of prompts that it knows are not
    run, and what is run is kept there, answers too. on_layer: where the model reads its experts, called between the
    layers of a prompt, each of which is run for all of it: there `remove` may end so long a step.

    An engine is for one thread, which has the model to itself.
    """

    def __init__(
        self,
        model: CausalLM,
        sampler: RowSampler = greedy_rows,
        *,
        max_rows: int = MAX_ROWS,
        prefill_step_size: int | None = None,
        chunk_seconds: float = CHUNK_SECONDS,
        store: PrefixStore | None = None,
        on_layer: Callable[[], None] | None = None,
    ) -> None:
        check_count("max_rows", max_rows)
        if prefill_step_size is not None:
            check_count("prefill_step_size", prefill_step_size)
        # a token of several rows wants more experts than one that is read for: they would be read over and over
        self.model, self.max_rows = model, max_rows if model.takes_batches else 1
        self.store = self._checked(store)
        self._sampler, self._budget = sampler, ChunkBudget(chunk_seconds)
        self._prompts = PromptReader(model, self._budget, step_size=prefill_step_size, on_layer=on_layer)
        self._arriving: list[Pending] = []  # with their first token chosen, in caches of their own
        self._groups: list[Cache] = []
        self._members: list[list[Request]] = []  # the rows of each group
        self._pending: Pending | None = None  # the next tokens of all rows, not handed out yet
        self._steps = self._prompt_tokens = 0  # since buffers were given back
        self.failures = 0
        """How often the model or the sampler itself failed, rather than a single row's choice."""

    def add(
        self,
        tokens: Sequence[int],
        *,
        limit: int,
        ends: Collection[int] = (),
        choose: Any = None,
        cache: Cache | None = None,
        store: PrefixStore | None = None,
        mark: int = 0,
        ahead: Ahead | None = None,
    ) -> Request:
        """A request for an answer to a prompt's tokens, begun by a later `step`, once there is room.

        limit: tokens to give at most, fewer where the model's context ends. ends: tokens that end the answer. choose:
        what the sampler is to know of it. cache: an empty one to use, such as one that quantizes what it keeps. store:
        in place of the engine's. mark: tokens that other prompts begin with, too, which it is to keep for them. ahead:
        runs guesses while it is the only one and no other can be begun, when a step may give several of its tokens.
        InputError for a prompt that cannot be run.
        """
        check_count("limit", limit)
        store = self.store if store is None else self._checked(store)
        if cache is not None and (cache.offset or store is not None):
            raise InputError(
                "the cache must be empty, and without a store: set model.kv_quantization before that is made"
            )
        prompt = as_token_ids(tokens, "the prompt is not")
        room = room_after(self.model, prompt)
        limit, ends, has_cache = min(limit, room), frozenset(ends), cache is not None
        request = Request(
            prompt, limit, ends, choose, cache=cache, has_cache=has_cache, store=store, mark=mark, ahead=ahead
        )
        self._prompts.waiting.append(request)
        return request

    def _checked(self, store: PrefixStore | None) -> PrefixStore | None:
        if store is not None and store.model is not self.model:
            raise InputError("the store is of another model: make one with PrefixStore(model)")
        return store

    def remove(self, *requests: Request) -> None:
        """End requests before their time; what they hold is freed at once. Those that are over stay as they are."""
        for request in requests:
            request.finish_reason = request.finish_reason or "removed"
        self._drop()

    def __len__(self) -> int:
        """Requests that are not over."""
        return len(self._prompts.waiting) + self._joined

    @property
    def _rows(self) -> list[Request]:
        """Those that decode, in the order of the caches' rows."""
        return [request for members in self._members for request in members]

    @property
    def _joined(self) -> int:
        """Requests whose prompts are read."""
        return len(self._rows) + sum(len(pending.rows) for pending in self._arriving)

    @property
    def running(self) -> int:
        """Requests that have been begun and are not over."""
        return self._prompts.begun + self._joined

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        own = [*self._prompts.waiting, *(row for pending in self._arriving for row in pending.rows)]
        caches = dict.fromkeys([*self._groups, *(request.cache for request in own)])
        return sum(cache.nbytes for cache in caches if cache is not None)

    def step(self) -> list[Event]:
        """The next token of every row, or several of one that is alone; as much of the prompts as the budget allows.

        There may be no event while prompts are read. Where the model or the sampler itself fails, all rows do, and the
        engine goes on with what waits.
        """
        try:
            events = self._step_rows()
        except Exception as error:
            events = self._fail_rows(error)
        is_beside = self._pending is not None
        reading = self._prompts.read(self.max_rows - self._joined, is_beside=is_beside)
        self.failures += bool(reading.failures)
        for requests, logits in reading.finished:
            reading.failures += self._arrive(logits, requests)
        if is_beside:
            self._budget.read(reading.tokens)
        self._drop()
        self._clear(reading.tokens)
        return events + reading.failures

    def _arrive(self, logits: mx.array, requests: list[Request]) -> list[Event]:
        """Choose the first tokens of requests whose prompts are read; the failures."""
        try:
            pending, failures = self._chosen(logits, requests)
        except Exception as error:
            self.failures += 1
            return [request.fail(error) for request in requests]
        if pending is not None:
            self._arriving.append(pending)
        return failures

    def _step_rows(self) -> list[Event]:
        """Let those join that can, and hand out a token of every row."""
        if self._arriving or self._has_mixed():
            self._regroup()
        if self._pending is None:
            return []
        ahead = self._ahead
        if ahead is not None and (events := self._run_ahead(ahead, self._pending)):
            return events
        logits = self._forward(self._pending)
        events = self._hand_out(self._pending)
        events += self._choose(logits, [row for row in self._rows if not row.is_over])
        if ahead is not None:
            ahead.ran_plainly()
        return events

    @property
    def _ahead(self) -> Ahead | None:
        """What runs ahead of the only row, when no other can be begun."""
        is_alone = self.running == 1 and (self.max_rows == 1 or not self._prompts.waiting)
        return self._rows[0].ahead if is_alone else None

    def _run_ahead(self, ahead: Ahead, pending: Pending) -> list[Event]:
        """Hand out the pending token and the guesses after it that were right; none if none were made."""
        (row,), (cache,) = pending.rows, self._groups
        try:
            found = ahead.run(row, cache, pending.tokens)
        except Exception as error:
            return self._hand_out(pending) + self._fail_rows(error)
        if not found:
            return []
        drawn = [Pending([row], mx.array([token], pending.tokens.dtype), logprobs[None]) for token, logprobs in found]
        mx.async_eval([part.logprobs for part in drawn])
        events = [event for part in (pending, *drawn[:-1]) for event in self._hand_out(part)]
        self._pending = None if row.is_over else drawn[-1]
        return events

    def _fail_rows(self, error: Exception) -> list[Event]:
        """End all rows, whose caches may be at odds."""
        self.failures += 1
        rows = [*self._rows, *(row for pending in self._arriving for row in pending.rows)]
        events = [row.fail(error) for row in rows if not row.is_over]
        self._groups, self._members, self._arriving, self._pending = [], [], [], None
        return events

    def _forward(self, pending: Pending) -> mx.array | None:
        """The logits (B, vocab) after the tokens that are to be handed out, under way; None where all are the last."""
        if all(len(row.answer) + 1 == row.limit for row in pending.rows):
            return None
        logits = self.model.step(pending.tokens, self._groups)
        mx.async_eval(logits)
        return logits

    def _hand_out(self, pending: Pending) -> list[Event]:
        """Read the tokens chosen last, for which alone the host waits."""
        events = []
        ids: list[int] = pending.tokens.tolist()  # type: ignore[assignment]
        for row, token in zip(pending.rows, ids, strict=True):
            row.answer.append(token)
            if token in row.ends:
                row.finish_reason = "stop"
            elif len(row.answer) == row.limit:
                row.finish_reason = "length"
            events.append(Event(row, token, row.finish_reason, chosen=pending))
        return events

    def _choose(self, logits: mx.array | None, rows: list[Request]) -> list[Event]:
        """Choose the next tokens of the rows that go on, by the logits of all; the failures."""
        if logits is None or not rows:
            self._pending = None
            return []
        if len(rows) < logits.shape[0]:
            places = {row: i for i, row in enumerate(self._rows)}
            logits = logits[mx.array([places[row] for row in rows])]
        self._pending, failures = self._chosen(logits, rows)
        return failures

    def _chosen(self, logits: mx.array, rows: list[Request]) -> tuple[Pending | None, list[Event]]:
        """The next tokens of rows, under way, and the failures, whose rows are over."""
        chosen: Chosen = self._sampler(logits, rows)
        mx.async_eval(chosen.tokens, chosen.logprobs)
        failures = [rows[i].fail(error) for i, error in chosen.failed.items()]
        return Pending(rows, chosen.tokens, chosen.logprobs).without_ended(), failures

    def _has_mixed(self) -> bool:
        """Whether a group has rows that must part: some whose keys are to be quantized, some whose are not."""
        ends = ((cache, [f(row_lengths(cache)) for f in (min, max)]) for cache in self._groups)
        return any(len({row_kind(cache, length) for length in lengths}) > 1 for cache, lengths in ends)

    def _drop(self) -> None:
        """Let go of all requests that are over."""
        self._prompts.drop_ended()
        arriving = [row for pending in self._arriving for row in pending.rows]
        if any(row.is_over for row in (*self._rows, *arriving)):
            self._regroup()

    def _regroup(self) -> None:
        """Arrange the rows that go on anew, with those arriving; what the others hold goes to the store at most."""
        places = self._places()
        self._groups = []  # of those that are in no place nothing is left
        lengths = {row: row_lengths(cache)[i] for row, (cache, i) in places.items()}
        arriving = [pending for part in self._arriving if (pending := part.without_ended()) is not None]
        self._members = arrange(
            [[row for row in members if not row.is_over] for members in self._members],
            [row for pending in arriving for row in pending.rows],
            length=lambda row: lengths[row],
            kind=lambda row: row_kind(places[row][0], lengths[row]),
        )
        self._groups = regroup([[places[row] for row in members] for members in self._members])
        chosen = Pending.joined([*([] if self._pending is None else [self._pending]), *arriving])
        self._pending = None if chosen is None else chosen.ordered(self._rows)
        if self._pending is not None:
            mx.async_eval(self._pending.tokens, self._pending.logprobs)
        self._arriving = []
        self._budget.pause()
        mx.clear_cache()

    def _places(self) -> dict[Request, Row]:
        """Where the rows are that go on, and those arriving; what came of the others is kept in the store."""
        places: dict[Request, Row] = {}
        for cache, members in zip(self._groups, self._members, strict=True):
            for i, row in enumerate(members):
                if not row.is_over:
                    places[row] = cache, i
                    continue
                row.ahead = None  # with the caches that it knows
                if row.store is not None:
                    own, tokens = row_of(cache, i), row.tokens
                    row.store.insert(tokens[: own.offset], own, marks=(row.mark, len(row.prompt), len(tokens)))
        for row in [row for pending in self._arriving for row in pending.rows]:
            if not row.is_over:
                assert row.cache is not None
                places[row] = row.cache, row.row
            row.cache = None
        return places

    def _clear(self, started: int) -> None:
        """Give freed buffers back now and then: caches that grew leave some that are too small for anything."""
        self._steps, self._prompt_tokens = self._steps + 1, self._prompt_tokens + started
        if self._steps >= CLEAR_EVERY or self._prompt_tokens >= CLEAR_PROMPT_EVERY:
            mx.clear_cache()
            self._steps = self._prompt_tokens = 0
