"""Answers become OpenAI's responses: whole, or as the events of a stream that adds up to the same."""

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal
from uuid import uuid4

from ..errors import RequestError, failure
from ..openai.logprobs import of_chat
from ..parts import More, Parts
from ..question import Answering, Finish, TokenLogprob, Update
from ..sse import event
from .forms import (
    InputDetails,
    OutputDetails,
    ReasoningConfig,
    Response,
    ResponsesBody,
    State,
    TextConfig,
    TextFormat,
    Usage,
)
from .items import Items, Told
from .questions import offered_tools


class ResponseWriter:
    """Writes one response."""

    def __init__(self, answering: Answering, body: ResponsesBody, model: str) -> None:
        self._answering, self._body, self._model = answering, body, model
        self._id, self._created = f"resp_{uuid4().hex}", int(time.time())
        reasoning = body.reasoning or ReasoningConfig()
        self._parts = Parts()
        self._items = Items(
            summarizes=bool(reasoning.summary or reasoning.generate_summary),
            seals="reasoning.encrypted_content" in (body.include or ()),
        )
        self._pending: list[TokenLogprob] = []  # of text that is not told yet
        self._finish: Finish | None = None
        self._number = 0  # of the next event

    async def whole(self) -> dict[str, Any]:
        """The response, once all of it is there. RequestError where it ends in one."""
        async with self._answering:
            async for update in self._answering:
                for _ in self._told(update):
                    pass
        for _ in self._ending():
            pass
        return self._response(self._status)

    async def events(self) -> AsyncGenerator[str, None]:
        """The events of a stream: whatever happens, to its very end, without which clients ask again or wait."""
        failed: RequestError | None = None
        try:
            async with self._answering:
                yield self._lifecycle("created", "in_progress") + self._lifecycle("in_progress", "in_progress")
                async for update in self._answering:
                    for told in self._told(update):
                        yield self._event(*told)
        except Exception as error:
            failed = failure(error)
        for told in self._ending():
            yield self._event(*told)
        status = self._status if failed is None else "failed"
        yield self._lifecycle(status, status, failed)

    def alive(self) -> str:
        """A sign of life: that the response is in progress."""
        return self._lifecycle("in_progress", "in_progress")

    @property
    def _status(self) -> Literal["completed", "incomplete"]:
        return "completed" if self._finish is not None and self._finish.reason != "length" else "incomplete"

    def _told(self, update: Update) -> Iterator[Told]:
        self._finish = update.finish
        self._pending += update.logprobs
        for step in self._parts.take(update.deltas):
            told: list[TokenLogprob] = []
            if isinstance(step, More) and step.part.kind == "text":
                told, self._pending = self._pending, []
            yield from self._items.told(step, logprobs=of_chat(told)["content"])

    def _ending(self) -> Iterator[Told]:
        for step in self._parts.finish():
            yield from self._items.told(step, logprobs=[], status=self._status)

    def _lifecycle(self, name: str, status: State, failed: RequestError | None = None) -> str:
        return self._event(name, {"response": self._response(status, failed)})

    def _event(self, name: str, fields: dict[str, Any]) -> str:
        kind, number = f"response.{name}", self._number
        self._number += 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)

    def _response(self, status: State, failed: RequestError | None = None) -> dict[str, Any]:
        body, finish = self._body, self._finish
        is_over = status != "in_progress"
        response = Response(
            id=self._id,
            created_at=self._created,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            error=None if failed is None else _error(failed),
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            model=self._model,
            output=self._items.whole if is_over else [],
            violation=None if finish is None else finish.violation,
            usage=_usage(finish) if is_over and finish is not None else None,
            instructions=body.instructions,
            tools=offered_tools(body),
            tool_choice=body.tool_choice or "auto",
            parallel_tool_calls=body.parallel_tool_calls is not False,
            text=TextConfig(format=TextFormat()) if body.text is None else body.text,
            reasoning=body.reasoning or ReasoningConfig(),
            max_output_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_logprobs=body.top_logprobs or 0,
            metadata=body.metadata or {},
        )
        return response.model_dump(mode="json", by_alias=True)


def _error(failed: RequestError) -> dict[str, Any]:
    return {"code": "rate_limit_exceeded" if failed.status == 429 else "server_error", "message": failed.message}


def _usage(finish: Finish) -> Usage:
    return Usage(
        input_tokens=finish.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=finish.cached_tokens),
        output_tokens=finish.completion_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=finish.reasoning_tokens),
        total_tokens=finish.prompt_tokens + finish.completion_tokens,
    )
