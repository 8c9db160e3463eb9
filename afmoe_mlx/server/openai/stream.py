"""`Chunks`: answers as a stream of OpenAI's chunks, which ends as its clients expect, whatever happens."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import sse
from ..errors import failure
from ..question import Answering, Call, Finish, Progress, Update
from .errors import error_body

DONE = "[DONE]"


class Chunks(ABC):
    """Makes the events of a request's answers.

    head: what all chunks have. prompts, answers: how many there are, each prompt with as many answers. call: their
    request's. tells_progress: whether the tokens at the end are told with the times that they took.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        call: Call,
        *,
        prompts: int,
        answers: int,
        includes_usage: bool,
        tells_progress: bool = False,
    ) -> None:
        self._head, self._call = head, call
        self._includes_usage, self._tells_progress = includes_usage, tells_progress
        self._open = list(range(prompts * answers))
        self._finishes: dict[int, Finish] = {}
        self._answers = answers

    def alive(self) -> str:
        """A sign of life: a chunk in which nothing comes of an answer that is not over."""
        return self._event([self.choice(self._open[0])]) if self._open else sse.ALIVE

    async def events(self, answering: Answering) -> AsyncGenerator[str, None]:
        """All of them."""
        failed = None
        try:
            async with answering:
                for index in self._open:
                    for choice in self.begin(index):
                        yield self._event([choice])
                async for update in answering:
                    for event in self._told(update):
                        yield event
        except Exception as error:
            failed = failure(error)
        if failed is not None:
            yield sse.event(error_body(failed))
            for index in self._open:  # clients wait for it, and an answer that broke off is not whole
                yield self._event([self.choice(index, "length")])
        if self._includes_usage:
            timings = self._timings() if self._tells_progress else {}
            yield self._event([], usage_body(self._usage(answering)), timings)
        yield sse.event(DONE)

    @abstractmethod
    def begin(self, index: int) -> Iterator[dict[str, Any]]:
        """The choices that an answer begins with."""

    @abstractmethod
    def choices(self, update: Update) -> Iterator[dict[str, Any]]:
        """What comes of an answer, without its end."""

    @abstractmethod
    def choice(self, index: int, reason: str | None = None) -> dict[str, Any]:
        """A choice with nothing in it but why the answer ended."""

    def end(self, index: int, finish: Finish) -> dict[str, Any]:
        """The last choice of an answer."""
        choice = self.choice(index, finish.reason)
        return choice if finish.violation is None else choice | {"violation": finish.violation}

    def _usage(self, answering: Answering) -> "Usage":
        known = usage_of(self._finishes, self._answers)
        if not self._open:
            return known
        call = self._call  # which has counted what came of answers that broke off
        cached = known.cached_tokens or answering.cached_tokens
        return Usage(call.prompt_tokens, cached, call.completion_tokens, known.reasoning_tokens)

    def _told(self, update: Update) -> Iterator[str]:
        if update.progress is not None:
            yield self._event([self.choice(update.index)], None, {"prompt_progress": self._progress(update.progress)})
        for choice in self.choices(update):
            yield self._event([choice])
        if update.finish is not None:
            self._finishes[update.index] = update.finish
            self._open.remove(update.index)
            yield self._event([self.end(update.index, update.finish)])

    def _progress(self, progress: Progress) -> dict[str, int]:
        """As llama.cpp's server tells it, and so `_timings`."""
        passed = round(1000 * (time.perf_counter() - self._call.began))
        return {"total": progress.total, "cache": progress.cached, "processed": progress.read, "time_ms": passed}

    def _timings(self) -> dict[str, Any]:
        call = self._call
        passed = time.perf_counter() - call.began
        first = passed if call.first_token is None else call.first_token
        times = {"prompt_ms": first, "predicted_ms": passed - first}
        return {"timings": {name: round(1000 * seconds, 1) for name, seconds in times.items()}}

    def _event(
        self,
        choices: list[dict[str, Any]],
        usage: dict[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        told = {"usage": usage} if self._includes_usage else {}
        return sse.event({**self._head, "choices": choices, **told, **(more or {})})


@dataclass(frozen=True)
class Usage:
    """The tokens of a request's answers together: the reasoning's are among the completion's."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompts'."""
    completion_tokens: int
    reasoning_tokens: int


def usage_of(finishes: Mapping[int, Finish], answers: int) -> Usage:
    """Of answers by their numbers, of which so many are to each prompt, that counts once."""
    first: dict[int, Finish] = {}
    for index in sorted(finishes):
        first.setdefault(index // answers, finishes[index])
    return Usage(
        sum(finish.prompt_tokens for finish in first.values()),
        sum(finish.cached_tokens for finish in first.values()),
        sum(finish.completion_tokens for finish in finishes.values()),
        sum(finish.reasoning_tokens for finish in finishes.values()),
    )


def usage_body(usage: Usage) -> dict[str, Any]:
    """Usage in OpenAI's form."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
