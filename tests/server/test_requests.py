"""What clients of other makers send, as recorded and then trimmed, is answered in a form that their protocol accepts."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import RawMessageStreamEvent
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from afmoe_mlx import load
from afmoe_mlx.server.endpoint import EventStream
from afmoe_mlx.server.protocols import ENDPOINTS
from afmoe_mlx.server.question import Call
from afmoe_mlx.tokenizer import Tokenizer
from helpers.fake_service import FakeService

REQUESTS = sorted((Path(__file__).parent / "requests").glob("*.json"))
EVENTS: dict[str, TypeAdapter[Any]] = {
    "/v1/chat/completions": TypeAdapter(ChatCompletionChunk),
    "/v1/messages": TypeAdapter(RawMessageStreamEvent),
    "/v1/responses": TypeAdapter(ResponseStreamEvent),
}


def streamed(tokenizer: Tokenizer, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of an answer to a request, each parsed by its protocol's own package."""
    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.path == path)

    async def events() -> list[str]:
        service = FakeService(tokenizer, texts=("Done.",), name="scripted", context=131072)
        handled = await endpoint.handle(service, endpoint.body.model_validate(body), Call("1", path))
        assert isinstance(handled, EventStream)
        return [event async for event in handled.events]

    datas = [line.removeprefix("data: ") for event in asyncio.run(events()) for line in event.splitlines()]
    return [EVENTS[path].validate_json(data, strict=True) for data in datas if data.startswith("{")]


@pytest.mark.parametrize("recorded", REQUESTS, ids=lambda path: path.stem)
def test_every_clients_request_is_streamed_to_the_end_that_it_waits_for(recorded: Path, tokenizer: Tokenizer) -> None:
    request = json.loads(recorded.read_text(encoding="utf-8"))
    path = request["path"].partition("?")[0]
    *_, last = events = streamed(tokenizer, path, request["body"])
    if path == "/v1/chat/completions":
        assert [choice.finish_reason for event in events for choice in event.choices if choice.finish_reason] == [
            "stop"
        ]
        assert "".join(choice.delta.content or "" for event in events for choice in event.choices) == "Done."
        assert last.usage or "stream_options" not in request["body"]
    elif path == "/v1/messages":
        assert [event.type for event in (events[0], *events[-2:])] == ["message_start", "message_delta", "message_stop"]
        assert events[-2].delta.stop_reason == "end_turn" and events[-2].usage.output_tokens
    else:
        assert last.type == "response.completed" and last.response.usage.input_tokens
        assert last.response.output_text == "Done."


@pytest.fixture(scope="module")
def tokenizer(model: str) -> Tokenizer:
    return load(model)[1]
