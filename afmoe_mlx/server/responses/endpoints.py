"""The path of OpenAI's Responses."""

from .. import sse
from ..endpoint import Endpoint, EventStream, Handled
from ..openai.errors import error_body
from ..question import Call, Service
from .answers import ResponseWriter
from .forms import Response, ResponsesBody
from .questions import question_of


async def _responses(service: Service, body: ResponsesBody, call: Call) -> Handled:
    question = question_of(body, call.id)
    writer = ResponseWriter(await service.ask([question], call), body, service.name)
    return EventStream(await sse.begun(writer.events()), writer.alive) if body.stream else await writer.whole()


ENDPOINTS = [Endpoint("/v1/responses", ResponsesBody, Response, _responses, error_body)]
