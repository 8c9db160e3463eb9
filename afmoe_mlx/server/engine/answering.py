"""`Answers`: what the engine writes for a request, as updates for whoever asked."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

from ...messages import CallEnd, ContentDelta, Delta, ReasoningDelta
from ...tokenizer import Tokenizer
from ..errors import RequestError
from ..question import Call, Finish, TokenLogprob, Update
from .jobs import Job, Piece, PromptRead, Told
from .rendering import Rendered


class Answers:
    """The `question.Answering` of a job. For the event loop's thread."""

    def __init__(
        self,
        questions: Sequence[Rendered],
        tokenizer: Tokenizer,
        call: Call,
        *,
        rows: int,
        needed: int,
        cancel: Callable[[Job, int | None], None],
    ) -> None:
        """rows, needed: the job's. cancel: lets go of it, whether it is over or not, or of one of its answers."""
        self._call, self._cancel = call, cancel
        self._told: asyncio.Queue[Told] = asyncio.Queue()
        self._readings = {i: _Reading(i, question, tokenizer) for i, question in enumerate(questions)}
        self.prompt_tokens, self.cached_tokens = len(questions[0].prompt), 0
        longest = max(question.most_tokens for question in questions)
        self.job = Job(questions, call.owner, rows, needed, longest, self._told.put_nowait)
        # of several answers to a prompt the first: the others find it in the store, which tells nothing of the request
        self._firsts = set({id(q.prompt): i for i, q in reversed([*enumerate(questions)])}.values())
        call.prompt_tokens = sum(len(questions[i].prompt) for i in self._firsts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._cancel(self.job, None)
        if self._readings:
            self._call.reason = self._call.reason or "removed"

    async def __aiter__(self) -> AsyncIterator[Update]:
        while self._readings:
            told = await self._told.get()
            if isinstance(told, RequestError):
                self._readings, self._call.reason = {}, told.code or str(told.status)
                raise told
            if (reading := self._readings.get(told.index)) is None:  # it has been ended, and this was under way
                continue
            if isinstance(told, PromptRead):
                yield Update(told.index, progress=told.progress)
                continue
            update = reading.update(told)
            self._count(told, update.finish)
            if update.finish is not None:
                del self._readings[told.index]
                if told.finish_reason is None:
                    self._cancel(self.job, told.index)
            if update.deltas or update.logprobs or update.finish:
                yield update

    def _count(self, piece: Piece, finish: Finish | None) -> None:
        call = self._call
        call.completion_tokens += 1
        if call.first_token is None:
            call.first_token = time.perf_counter() - call.began
        if piece.index == 0:
            self.cached_tokens = piece.cached_tokens
        if finish is not None:
            call.reason = finish.reason
            if piece.index in self._firsts:
                call.cached_tokens += piece.cached_tokens


class _Reading:
    """One answer as it is read."""

    def __init__(self, index: int, question: Rendered, tokenizer: Tokenizer) -> None:
        self._index, self._reader, self._takes_all = index, question.reader(tokenizer), question.parallel_tool_calls
        self._logprobs = _ContentLogprobs()
        self._reasoning_tokens = 0

    def update(self, piece: Piece) -> Update:
        """What comes of its next token."""
        reader, reason, is_last = self._reader, piece.finish_reason, piece.finish_reason is not None
        was_reasoning = reader is not None and reader.is_reasoning
        deltas = self._deltas(piece.text, is_last=is_last)
        self._reasoning_tokens += was_reasoning or any(isinstance(delta, ReasoningDelta) for delta in deltas)
        logprobs: Sequence[TokenLogprob] = ()
        if piece.logprob is not None:
            logprobs = self._logprobs.told(piece, deltas, "" if reader is None or is_last else reader.held)
        ends = [i for i, delta in enumerate(deltas, 1) if isinstance(delta, CallEnd)]
        if ends and not self._takes_all:
            deltas, reason = deltas[: ends[0]], "stop"
        return Update(self._index, deltas, logprobs, self._finish(piece, reason) if reason else None)

    def _deltas(self, text: str, *, is_last: bool) -> list[Delta]:
        if self._reader is None:
            return [ContentDelta(text)] if text else []
        deltas = self._reader.feed(text) if text else []
        return [*deltas, *self._reader.finish()] if is_last else deltas

    def _finish(self, piece: Piece, reason: str) -> Finish:
        has_calls = self._reader is not None and bool(self._reader.answer.tool_calls)
        return Finish(
            "tool_calls" if has_calls and reason == "stop" else reason,
            prompt_tokens=piece.prompt_tokens,
            cached_tokens=piece.cached_tokens,
            completion_tokens=piece.generation_tokens,
            reasoning_tokens=self._reasoning_tokens,
            stop_sequence=piece.stop,
            violation=piece.violation,
        )


class _ContentLogprobs:
    """Tells the tokens of content apart from the others, by where their bytes lie in the text."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, TokenLogprob]] = []  # not told yet, with the ends of their bytes
        self._written = 0  # bytes of all tokens
        self._read = 0  # bytes of the text that became final
        self._known = 0  # of these, those of which is known what they belong to

    def told(self, piece: Piece, deltas: Sequence[Delta], held: str) -> list[TokenLogprob]:
        """The tokens of the content in `deltas` that were not told; held: the end of the text that is in none yet."""
        assert piece.logprob is not None
        self._written += len(piece.logprob.text)
        self._pending.append((self._written, piece.logprob))
        self._read += len(piece.text.encode())
        before, self._known = self._known, self._read - len(held.encode())
        content = sum(len(delta.text.encode()) for delta in deltas if isinstance(delta, ContentDelta))
        if not deltas:
            return []
        first, last = before, before + content
        if isinstance(deltas[-1], ContentDelta):  # what comes before it, as the end of the reasoning, is in no delta
            first, last = self._known - content, self._known
        found = [
            logprob
            for end, logprob in self._pending
            if content and end > first and end - len(logprob.text) < last and logprob.text
        ]
        told = set(map(id, found))
        self._pending = [row for row in self._pending if row[0] > self._known and id(row[1]) not in told]
        return found
