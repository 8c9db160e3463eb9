"""A service without a model, that answers what a test wants, or fails where it wants."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from afmoe_mlx.messages import AnswerReader, CallEnd, ContentDelta, Delta
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.question import Call, Finish, Progress, Question, TokenLogprob, Update
from afmoe_mlx.tokenizer import Tokenizer


@dataclass
class FakeService:
    """Answers the question numbered i with `texts[i % len(texts)]`, a piece of `size` characters an update."""

    tokenizer: Tokenizer
    texts: Sequence[str] = ("Hello.",)
    size: int = 3
    reason: str = "stop"
    stop_sequence: str | None = None
    violation: str | None = None
    reasoning_tokens: int = 0
    refusal: RequestError | None = None
    """Raised by `ask`."""
    failure: RequestError | None = None
    """Ends the answers after `fails_after` updates."""
    fails_after: int = 0
    read: Sequence[Progress] = ()
    """Told of the first prompt before its answer, if it was asked for."""
    pause: float = 0.0
    """Seconds before each update."""
    name: str = "tiny"
    created: int = 1_700_000_000
    context: int = 4096
    defaults: Mapping[str, float] = field(default_factory=lambda: {"temperature": 0.5, "max_tokens": 100})
    asked: list[Question] = field(default_factory=list)
    ended: list[Call] = field(default_factory=list)
    """Calls whose block was left."""

    async def ask(self, questions: Sequence[Question], call: Call) -> "FakeAnswering":
        self.asked += questions
        if self.refusal is not None:
            raise self.refusal
        return FakeAnswering(self, list(questions), call)

    async def count_tokens(self, question: Question) -> int:
        self.asked.append(question)
        if self.refusal is not None:
            raise self.refusal
        return 7


class FakeAnswering:
    prompt_tokens = 7
    cached_tokens = 2

    def __init__(self, service: FakeService, questions: list[Question], call: Call) -> None:
        self.service, self.questions, self.call = service, questions, call
        call.prompt_tokens = 7

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.service.ended.append(self.call)

    async def __aiter__(self) -> AsyncIterator[Update]:
        service, told = self.service, 0
        for progress in service.read if self.questions[0].tells_progress else ():
            yield Update(0, progress=progress)
        for index, question in enumerate(self.questions):
            text = service.texts[index % len(service.texts)]
            reader = AnswerReader(service.tokenizer, question.tools or ())
            raw = question.prompt is not None
            pieces = [text[i : i + service.size] for i in range(0, len(text), service.size)]
            for piece in [*pieces, None]:
                await asyncio.sleep(service.pause)
                if service.failure is not None and told == service.fails_after:
                    raise service.failure
                told += 1
                self.call.completion_tokens += piece is not None
                deltas: Sequence[Delta] = reader.finish() if piece is None else reader.feed(piece)
                if raw:
                    deltas = [] if piece is None else [ContentDelta(piece)]
                ends = [i for i, delta in enumerate(deltas, 1) if isinstance(delta, CallEnd)]
                is_cut = bool(ends) and not question.parallel_tool_calls
                deltas, is_over = deltas[: ends[0]] if is_cut else deltas, is_cut or piece is None
                asked = question.top_logprobs is not None and piece is not None
                logprobs = [TokenLogprob(1, piece.encode(), -0.5)] if asked and piece is not None else []
                yield Update(index, deltas, logprobs, self._finish(reader, pieces) if is_over else None)
                if is_over:
                    break

    def _finish(self, reader: AnswerReader, pieces: Sequence[str]) -> Finish:
        calls = reader.answer.tool_calls
        reason = "tool_calls" if calls and self.service.reason == "stop" else self.service.reason
        return Finish(
            reason,
            prompt_tokens=7,
            cached_tokens=2,
            completion_tokens=len(pieces),
            reasoning_tokens=self.service.reasoning_tokens,
            stop_sequence=self.service.stop_sequence,
            violation=self.service.violation,
        )
