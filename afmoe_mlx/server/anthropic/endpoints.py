"""The paths of Anthropic's interface."""

from typing import Any

from .. import sse
from ..endpoint import Endpoint, EventStream, Handled
from ..question import Call, Service
from .answers import MessageWriter
from .errors import error_body
from .forms import CountTokensBody, Message, MessagesBody, TokenCount
from .questions import question_of


async def _messages(service: Service, body: MessagesBody, call: Call) -> Handled:
    question = question_of(body, call.id)
    shown = getattr(body.thinking, "display", None) != "omitted"
    writer = MessageWriter(await service.ask([question], call), call, service.name, shows_thinking=shown)
    return EventStream(await sse.begun(writer.events()), writer.alive) if body.stream else await writer.whole()


async def _count_tokens(service: Service, body: CountTokensBody, call: Call) -> dict[str, Any]:
    question = question_of(body, call.id)
    return TokenCount(input_tokens=await service.count_tokens(question)).model_dump()


ENDPOINTS = [
    Endpoint("/v1/messages", MessagesBody, Message, _messages, error_body),
    Endpoint("/v1/messages/count_tokens", CountTokensBody, TokenCount, _count_tokens, error_body),
]
