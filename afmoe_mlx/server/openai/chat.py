"""/v1/chat/completions: answers to conversations, whole or streamed."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from ...messages import Delta
from .. import sse
from ..collected import Collected, collect
from ..endpoint import Endpoint, EventStream, Handled
from ..parts import Begin, More, Part, Parts
from ..question import Call, Service, Update
from . import logprobs
from .chat_body import ChatBody
from .errors import error_body
from .stream import Chunks, usage_body, usage_of


class Function(BaseModel):
    """A function that is called; arguments: JSON, unless the model's call is malformed."""

    name: str
    arguments: str


class AnswerCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: Function


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[AnswerCall] | None = None


class ChatChoice(BaseModel):
    """One of the answers. violation: what it falls short of in its response_format, if anything."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    violation: str | None = None


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: dict[str, Any]


async def handle(service: Service, body: ChatBody, call: Call) -> Handled:
    """Answer a request."""
    questions = body.questions(call.id)
    head = {"id": f"chatcmpl-{call.id}", "created": int(time.time()), "model": service.name}
    answering = await service.ask(questions, call)
    if body.stream:
        chunks = ChatChunks(
            {"object": "chat.completion.chunk", **head},
            call,
            answers=body.answers,
            includes_usage=body.includes_usage,
            tells_progress=bool(body.return_progress),
        )
        return EventStream(await sse.begun(chunks.events(answering)), chunks.alive)
    answers = await collect(answering)
    return {
        "object": "chat.completion",
        **head,
        "choices": [_choice(index, one, with_logprobs=bool(body.logprobs)) for index, one in enumerate(answers)],
        "usage": usage_body(usage_of({i: one.finish for i, one in enumerate(answers)}, body.answers)),
    }


def _choice(index: int, one: Collected, *, with_logprobs: bool) -> dict[str, Any]:
    parts = Parts()
    for _ in parts.take(one.deltas):
        pass
    text, reasoning = ("".join(p.text for p in parts.parts if p.kind == kind) for kind in ("text", "reasoning"))
    calls = [_call(part.name, part.text) for part in parts.parts if part.kind == "call"]
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    message |= {"reasoning_content": reasoning} if reasoning else {}
    message |= {"tool_calls": calls} if calls else {}
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs.of_chat(one.logprobs) if with_logprobs else None,
        "finish_reason": one.finish.reason,
        **({} if one.finish.violation is None else {"violation": one.finish.violation}),
    }


def _call(name: str, arguments: str = "") -> dict[str, Any]:
    """A call with an id of its own, which the client gives back with the result."""
    identifier = f"call_{secrets.token_hex(12)}"
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


class ChatChunks(Chunks):
    """Chunks of a chat completion."""

    def __init__(
        self, head: Mapping[str, Any], call: Call, *, answers: int, includes_usage: bool, tells_progress: bool
    ) -> None:
        super().__init__(
            head, call, prompts=1, answers=answers, includes_usage=includes_usage, tells_progress=tells_progress
        )
        self._deltas = [_Deltas() for _ in range(answers)]

    def begin(self, index: int) -> Iterator[dict[str, Any]]:
        yield self._with(index, {"role": "assistant", "content": ""})

    def choices(self, update: Update) -> Iterator[dict[str, Any]]:
        told = {"logprobs": logprobs.of_chat(update.logprobs)} if update.logprobs else {}
        for delta in self._deltas[update.index].take(update.deltas):
            # with the first of the content that they are of
            goes_along = told if "content" in delta else {}
            yield self._with(update.index, delta) | goes_along
            told = {} if goes_along else told
        if told:
            yield self._with(update.index, {}) | told

    def choice(self, index: int, reason: str | None = None) -> dict[str, Any]:
        return self._with(index, {}) | {"finish_reason": reason}

    def _with(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


class _Deltas:
    """One answer as deltas in OpenAI's form."""

    def __init__(self) -> None:
        self._parts = Parts()
        self._calls = 0

    def take(self, deltas: Sequence[Delta]) -> Iterator[dict[str, Any]]:
        """What the next of the model's deltas make."""
        for step in self._parts.take(deltas):
            match step:
                case Begin(Part(kind="call", name=name)):
                    yield {"tool_calls": [{"index": self._calls, **_call(name)}]}
                    self._calls += 1
                case More(Part(kind="call"), text):
                    yield {"tool_calls": [{"index": self._calls - 1, "function": {"arguments": text}}]}
                case More(Part(kind="reasoning"), text):
                    yield {"reasoning_content": text}
                case More(_, text):
                    yield {"content": text}


CHAT = Endpoint("/v1/chat/completions", ChatBody, ChatCompletion, handle, error_body)
