"""What is told, as the official packages read it: their client's own parser and their accumulator of streams.

The packages take long to import: they are looked at here alone.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from afmoe_mlx.server import sse
from afmoe_mlx.server.endpoint import EventStream
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.openai import ENDPOINTS, error_body
from afmoe_mlx.server.openai.models import models
from afmoe_mlx.server.question import Call
from helpers.fake_engine import FakeTokenizer
from helpers.fake_service import FakeService

TOKENIZER: Any = FakeTokenizer()
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
TEXT = (
    '<think>\nHm.\n</think>\n\nX\u2028Y<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>\n'
    '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
)
HELLO: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}]}


class Client:
    """`openai.AsyncOpenAI` before the endpoints, by HTTP's words without a connection."""

    def __init__(self, service: FakeService) -> None:
        import httpx2
        import openai

        self.service = service
        transport = httpx2.MockTransport(self._answer)
        http = httpx2.AsyncClient(transport=transport)
        self.client = openai.AsyncOpenAI(api_key="k", base_url="http://x/v1", http_client=http, max_retries=0)

    async def _answer(self, request: Any) -> Any:
        import httpx2

        if request.url.path == "/v1/models":
            return httpx2.Response(200, json=models(self.service))
        (endpoint,) = [endpoint for endpoint in ENDPOINTS if endpoint.path == request.url.path]
        try:
            body = endpoint.body.model_validate(json.loads(request.content))
            found = await endpoint.handle(self.service, body, Call("1", endpoint.path))
        except RequestError as error:
            return httpx2.Response(error.status, json=endpoint.error(error))
        if isinstance(found, dict):
            return httpx2.Response(200, json=found)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=_bytes(found))


async def _bytes(stream: EventStream) -> Any:
    yield sse.ALIVE.encode()
    async for event in stream.events:
        yield event.encode()
        yield stream.alive().encode()


@pytest.fixture(scope="module")
def run() -> Iterator[Any]:
    import asyncio

    with asyncio.Runner() as runner:
        yield runner.run


def service(*texts: str, **more: Any) -> FakeService:
    return FakeService(TOKENIZER, texts or ("Hello.",), **more)


def test_a_whole_answer_is_what_the_package_says_it_is(run: Any) -> None:
    from openai.types.chat import ChatCompletion

    client = Client(service(TEXT, size=2)).client
    found = run(client.chat.completions.create(**HELLO, tools=TOOLS, n=2, logprobs=True))
    strict = ChatCompletion.model_validate(found.to_dict(), strict=True)
    message = strict.choices[1].message
    assert message.content == "X\u2028Y"
    calls: Any = message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"a": "é"}, {}]
    assert strict.usage is not None
    assert strict.usage.total_tokens > 7


def test_a_stream_is_put_together_by_the_package(run: Any) -> None:
    from openai.types.chat import ChatCompletionChunk

    async def read() -> tuple[Any, list[Any]]:
        client = Client(service(TEXT, size=2)).client
        asked = {**HELLO, "tools": TOOLS, "stream_options": {"include_usage": True}}
        async with client.chat.completions.stream(**asked) as stream:
            chunks = [event.chunk async for event in stream if event.type == "chunk"]
            return await stream.get_final_completion(), chunks

    final, chunks = run(read())
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.to_dict(), strict=True)
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "X\u2028Y"
    assert choice.message.reasoning_content == "\nHm.\n"
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [{"a": "é"}, {}]
    assert final.usage.prompt_tokens_details.cached_tokens == 2


def test_a_schema_is_parsed_by_the_package(run: Any) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    found = service('{"name": "Zürich"}')
    parsed = run(Client(found).client.chat.completions.parse(**HELLO, response_format=City))
    assert parsed.choices[0].message.parsed == City(name="Zürich")
    assert found.asked[0].options["json_schema"]["properties"].keys() == {"name"}


def test_a_failure_in_the_middle_is_raised_by_the_package(run: Any) -> None:
    import openai

    async def read() -> None:
        failing = service(failure=RequestError(503, "the engine died"), fails_after=1)
        async for _ in await Client(failing).client.chat.completions.create(**HELLO, stream=True):
            pass

    with pytest.raises(openai.APIError, match="the engine died"):
        run(read())


def test_a_refusal_is_raised_by_the_package_with_its_code(run: Any) -> None:
    import openai

    refused = service(refusal=RequestError(400, "prompt is too long", code="context_length_exceeded"))
    with pytest.raises(openai.BadRequestError) as error:
        run(Client(refused).client.chat.completions.create(**HELLO))
    assert error.value.code == "context_length_exceeded"
    assert error.value.body == error_body(RequestError(400, "prompt is too long", code=error.value.code))["error"]


def test_completions_and_models_are_what_the_packages_say_they_are(run: Any) -> None:
    from anthropic.types import ModelInfo
    from openai.types import Completion

    async def read() -> list[Any]:
        client = Client(service("abc")).client
        asked: Any = {"model": "tiny", "prompt": ["a", "b"], "logprobs": 2}
        whole = await client.completions.create(**asked)
        parts = [part async for part in await client.completions.create(**asked, stream=True)]
        assert "".join(part.choices[0].text for part in parts) == "".join(choice.text for choice in whole.choices)
        (only,) = (await client.models.list()).data
        assert only.id == "tiny"
        return [whole, *parts]

    for one in run(read()):
        Completion.model_validate(one.to_dict() | {"choices": _with_reasons(one)}, strict=True)
    ModelInfo.model_validate(models(service())["data"][0])


def _with_reasons(completion: Any) -> list[Any]:
    """Its choices; the package has no form of its own for those that are not over."""
    return [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in completion.to_dict()["choices"]]
