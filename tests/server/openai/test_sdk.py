"""What is told, as the official package reads it: its types, its client and its accumulator of streams.

The package takes long to import: it is looked at here alone.
"""

import json
from typing import Any

import pytest

from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.openai import error_body
from helpers.official_clients import TEXT, openai_client, service_of

TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
HELLO: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}]}


def test_a_whole_answer_is_what_the_package_says_it_is(run: Any) -> None:
    from openai.types.chat import ChatCompletion

    client = openai_client(service_of(TEXT, size=2))
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
        client = openai_client(service_of(TEXT, size=2))
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

    found = service_of('{"name": "Zürich"}')
    parsed = run(openai_client(found).chat.completions.parse(**HELLO, response_format=City))
    assert parsed.choices[0].message.parsed == City(name="Zürich")
    assert found.asked[0].options["json_schema"]["properties"].keys() == {"name"}


def test_a_failure_in_the_middle_is_raised_by_the_package(run: Any) -> None:
    import openai

    async def read() -> None:
        failing = service_of(failure=RequestError(503, "the engine died"), fails_after=1)
        async for _ in await openai_client(failing).chat.completions.create(**HELLO, stream=True):
            pass

    with pytest.raises(openai.APIError, match="the engine died"):
        run(read())


def test_a_refusal_is_raised_by_the_package_with_its_code(run: Any) -> None:
    import openai

    refused = service_of(refusal=RequestError(400, "prompt is too long", code="context_length_exceeded"))
    with pytest.raises(openai.BadRequestError) as error:
        run(openai_client(refused).chat.completions.create(**HELLO))
    assert error.value.code == "context_length_exceeded"
    assert error.value.body == error_body(RequestError(400, "prompt is too long", code=error.value.code))["error"]


def test_completions_and_models_are_what_the_package_says_they_are(run: Any) -> None:
    from openai.types import Completion, Model

    async def read() -> list[Any]:
        client = openai_client(service_of("abc"))
        asked: Any = {"model": "tiny", "prompt": ["a", "b"], "logprobs": 2}
        whole = await client.completions.create(**asked)
        parts = [part async for part in await client.completions.create(**asked, stream=True)]
        assert "".join(part.choices[0].text for part in parts) == "".join(choice.text for choice in whole.choices)
        (only,) = (await client.models.list()).data
        Model.model_validate(only.to_dict(), strict=True)
        return [whole, *parts]

    for one in run(read()):
        Completion.model_validate(one.to_dict() | {"choices": _with_reasons(one)}, strict=True)


def _with_reasons(completion: Any) -> list[Any]:
    """Its choices; the package has no form of its own for those that are not over."""
    return [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in completion.to_dict()["choices"]]
