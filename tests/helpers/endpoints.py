"""Endpoints asked without HTTP: whole answers, and events as a client reads them."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from afmoe_mlx.server.endpoint import Endpoint, EventStream
from afmoe_mlx.server.question import Call, Service


def ask(endpoint: Endpoint, service: Service, **fields: Any) -> dict[str, Any]:
    """The whole answer to a request."""
    body = endpoint.body.model_validate(fields)
    found = asyncio.run(_handled(endpoint, service, body))
    assert isinstance(found, dict)
    return found


def events(endpoint: Endpoint, service: Service, **fields: Any) -> list[str]:
    """The texts of all events of a streamed answer."""

    async def read() -> list[str]:
        stream = await _handled(endpoint, service, endpoint.body.model_validate({**fields, "stream": True}))
        assert isinstance(stream, EventStream)
        return [event async for event in stream.events]

    return asyncio.run(read())


def data(found: Iterable[str]) -> list[Any]:
    """What events hold, comments left out: JSON read, any other text as it is."""
    lines = [line for event in found for line in event.splitlines() if line.startswith("data: ")]
    texts = [line.removeprefix("data: ") for line in lines]
    return [json.loads(text) if text.startswith("{") else text for text in texts]


async def _handled(endpoint: Endpoint, service: Service, body: Any) -> Any:
    return await endpoint.handle(service, body, Call("1", endpoint.path))
