"""Endpoints as the official packages' clients meet them, by HTTP's words without a connection."""

import json
from collections.abc import AsyncIterator
from typing import Any

from afmoe_mlx.server.endpoint import Endpoint, EventStream
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.protocols import ENDPOINTS
from afmoe_mlx.server.question import Call, Service
from helpers.fake_engine import FakeTokenizer
from helpers.fake_service import FakeService

TOKENIZER: Any = FakeTokenizer()
TEXT = (
    '<think>\nHm.\n</think>\n\nX\u2028Y<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>\n'
    '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
)


def service_of(*texts: str, **more: Any) -> FakeService:
    return FakeService(TOKENIZER, texts or ("Hello.",), **more)


def openai_client(service: Service) -> Any:
    """An `openai.AsyncOpenAI` that asks a service."""
    import openai

    return openai.AsyncOpenAI(api_key="k", base_url="http://x/v1", http_client=_http_client(service), max_retries=0)


def anthropic_client(service: Service) -> Any:
    """An `anthropic.AsyncAnthropic` that does."""
    import anthropic

    return anthropic.AsyncAnthropic(api_key="k", base_url="http://x", http_client=_http_client(service), max_retries=0)


def _http_client(service: Service) -> Any:
    import httpx2

    async def answer(request: Any) -> Any:
        (endpoint,) = [endpoint for endpoint in ENDPOINTS if endpoint.path == request.url.path]
        try:
            found = await ask(service, endpoint, json.loads(request.content or b"{}"))
        except RequestError as error:
            return httpx2.Response(error.status, json=endpoint.error(error))
        if isinstance(found, dict):
            return httpx2.Response(200, json=found)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=_bytes(found))

    return httpx2.AsyncClient(transport=httpx2.MockTransport(answer))


async def ask(service: Service, endpoint: Endpoint, fields: dict[str, Any]) -> Any:
    """What an endpoint makes of a request."""
    return await endpoint.handle(service, endpoint.body.model_validate(fields), Call("1", endpoint.path))


async def events(stream: EventStream, *, alive_after: int | None = None) -> list[dict[str, Any]]:
    """The data of a stream's events; alive_after: how many pieces come before a sign of life is asked for."""
    texts = []
    async for text in stream.events:
        texts.append(text)
        if len(texts) == alive_after:
            texts.append(stream.alive())
    found = [dict(_field(line) for line in text.splitlines()) for text in "".join(texts).split("\n\n") if text]
    told = [json.loads(fields["data"]) for fields in found if "data" in fields]
    assert [fields["event"] for fields in found if "data" in fields] == [data["type"] for data in told]
    return told


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return name, value


async def _bytes(stream: EventStream) -> AsyncIterator[bytes]:
    count = 0
    async for event in stream.events:
        yield event.encode()
        count += 1
        if count == 2:
            yield stream.alive().encode()
