"""Answers become Anthropic's messages: whole, or as the events of a stream that adds up to the same."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any
from uuid import uuid4

from ..errors import RequestError, failure
from ..parts import Begin, End, More, Part, Parts, Step
from ..question import Answering, Call, Finish
from ..sse import ALIVE, event
from .errors import error_body
from .forms import Message, OutputTokensDetails, TextBlock, ThinkingBlock, ToolUseBlock, Usage
from .questions import input_of

SIGNATURE = "unsigned"
"""Of every thinking block: clients drop those that have none."""

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}

Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageWriter:
    """Writes one message. call: its request's. shows_thinking: whether the text of its reasoning is told."""

    def __init__(self, answering: Answering, call: Call, model: str, *, shows_thinking: bool) -> None:
        self._answering, self._call, self._model, self._shows_thinking = answering, call, model, shows_thinking
        self._id = f"msg_{uuid4().hex}"
        self._parts = Parts()
        self._finish: Finish | None = None
        self._is_begun = False

    async def whole(self) -> dict[str, Any]:
        """The message, once all of it is there. RequestError where it ends in one."""
        async with self._answering:
            async for update in self._answering:
                for _ in self._parts.take(update.deltas):
                    pass
                self._finish = update.finish
        return self._message([self._block(part) for part in self._parts.parts])

    async def events(self) -> AsyncGenerator[str, None]:
        """The events of a stream: whatever happens, to its very end, without which clients ask again or wait."""
        failed: RequestError | None = None
        try:
            async with self._answering:
                yield ALIVE
                async for update in self._answering:
                    if told := self._beginning() + "".join(map(self._told, self._parts.take(update.deltas))):
                        yield told
                    self._finish = update.finish
        except Exception as error:
            failed = failure(error)
        if failed is not None:
            yield self._beginning() + _event(error_body(failed))
        for step in self._parts.finish():
            yield self._told(step)
        yield _event({"type": "message_delta", "delta": self._stop(), "usage": self._usage().model_dump()})
        yield _event({"type": "message_stop"})

    def alive(self) -> str:
        """A sign of life: the beginning, if nothing has come of the answer yet, then pings."""
        return self._beginning() or _event({"type": "ping"})

    def _beginning(self) -> str:
        """The first event, once. It waits for the answer, as not before it is known what of the prompt was."""
        if self._is_begun:
            return ""
        self._is_begun = True
        return _event({"type": "message_start", "message": self._message([])})

    def _told(self, step: Step) -> str:
        return "".join(_event({"type": kind, "index": step.part.index, **rest}) for kind, rest in self._events_of(step))

    def _events_of(self, step: Step) -> Iterator[tuple[str, dict[str, Any]]]:
        match step:
            case Begin(part):
                yield "content_block_start", {"content_block": self._block(part, begun=True).model_dump()}
            case More(Part(kind="text"), text):
                yield "content_block_delta", {"delta": {"type": "text_delta", "text": text}}
            case More(Part(kind="reasoning"), text):
                if self._shows_thinking:
                    yield "content_block_delta", {"delta": {"type": "thinking_delta", "thinking": text}}
            case More(Part(kind="call"), text):
                yield "content_block_delta", {"delta": {"type": "input_json_delta", "partial_json": text}}
            case End(part):
                if part.kind == "reasoning":
                    yield "content_block_delta", {"delta": {"type": "signature_delta", "signature": SIGNATURE}}
                yield "content_block_stop", {}

    def _block(self, part: Part, *, begun: bool = False) -> Block:
        """A part as a block; begun: as it is when nothing has come of it."""
        text = "" if begun else part.text
        match part.kind:
            case "text":
                return TextBlock(text=text)
            case "reasoning":
                signature = "" if begun else SIGNATURE
                return ThinkingBlock(thinking=text if self._shows_thinking else "", signature=signature)
            case "call":
                return ToolUseBlock(id=f"toolu_{uuid4().hex}", name=part.name, input=input_of(text))

    def _message(self, content: list[Block]) -> dict[str, Any]:
        stop = self._stop() if self._finish else {"stop_reason": None, "stop_sequence": None}
        message = Message(id=self._id, model=self._model, content=content, usage=self._usage(), **stop)
        return message.model_dump()

    def _stop(self) -> dict[str, Any]:
        finish = self._finish
        if finish is None:  # an answer that broke off is not whole
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        reason = _STOP_REASONS.get(finish.reason, "end_turn") if finish.stop_sequence is None else "stop_sequence"
        violation = {} if finish.violation is None else {"violation": finish.violation}
        return {"stop_reason": reason, "stop_sequence": finish.stop_sequence, **violation}

    def _usage(self) -> Usage:
        finish, answering = self._finish, self._answering
        if finish is None:
            cached = answering.cached_tokens
            return Usage(
                input_tokens=answering.prompt_tokens - cached,
                cache_read_input_tokens=cached,
                output_tokens=self._call.completion_tokens,
            )
        return Usage(
            input_tokens=finish.prompt_tokens - finish.cached_tokens,
            cache_read_input_tokens=finish.cached_tokens,
            output_tokens=finish.completion_tokens,
            output_tokens_details=OutputTokensDetails(thinking_tokens=finish.reasoning_tokens),
        )


def _event(data: dict[str, Any]) -> str:
    return event(data, data["type"])
