"""What is told of Messages, as the official package reads it: its types, its client and its tool runner.

The package takes long to import: it is looked at here alone.
"""

import json
from typing import Any

import pytest

from afmoe_mlx.server.anthropic import ENDPOINTS
from afmoe_mlx.server.anthropic.errors import error_body
from afmoe_mlx.server.errors import ContextLengthError, RequestError
from afmoe_mlx.server.openai.models import model
from helpers.fake_service import FakeService
from helpers.official_clients import TEXT, TOKENIZER, anthropic_client, ask, events, service_of

MESSAGES, COUNT = ENDPOINTS
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOLS: Any = [{"name": name, "input_schema": SCHEMA} for name in ("f", "g")]
HELLO: Any = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello."}]}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_and_a_whole_message_are_the_package_s_and_add_up_to_the_same(run: Any, size: int) -> None:
    from anthropic.lib.streaming._messages import accumulate_event
    from anthropic.types import Message, RawMessageStreamEvent
    from pydantic import TypeAdapter

    found = service_of(TEXT, size=size)
    whole = Message.model_validate(run(ask(found, MESSAGES, HELLO | {"tools": TOOLS})), strict=True)
    streamed = run(ask(found, MESSAGES, HELLO | {"tools": TOOLS, "stream": True}))
    event = TypeAdapter(RawMessageStreamEvent)
    message: Any = None
    buffers: dict[int, bytes] = {}
    for data in run(events(streamed)):
        told = event.validate_python(data, strict=True)
        message = accumulate_event(event=told, current_snapshot=message, json_bufs=buffers)
    ids = [block.id for block in whole.content if block.type == "tool_use"]
    assert len(set(ids)) == 2
    for block in (*whole.content, *message.content):
        if block.type == "tool_use":
            block.id = "toolu_"
    assert [block.to_dict() for block in message.content] == [block.to_dict() for block in whole.content]
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.stop_reason == whole.stop_reason == "tool_use"
    assert message.usage.to_dict() == whole.usage.to_dict()
    assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens) == (5, 2)


def test_the_client_s_stream_ends_with_the_message_whatever_signs_of_life_come_between(run: Any) -> None:
    async def read() -> Any:
        async with anthropic_client(service_of(TEXT, size=2)).messages.stream(**HELLO, tools=TOOLS) as stream:
            return "".join([text async for text in stream.text_stream]), await stream.get_final_message()

    text, message = run(read())
    assert text == "X\u2028Y"
    assert message.usage.cache_read_input_tokens == 2


def test_the_tool_runner_runs_a_tool_and_sends_all_again_where_threads_are_refused(run: Any) -> None:
    import anthropic

    called = []

    @anthropic.beta_async_tool
    async def f(a: str) -> str:
        """Of a."""
        called.append(a)
        return f"result {a}"

    class Scripted(FakeService):
        async def ask(self, questions: Any, call: Any) -> Any:
            self.texts = ["Done."] if questions[0].messages[-1]["role"] == "tool" else [TEXT.split("\n<tool_call>")[0]]
            return await super().ask(questions, call)

    found = Scripted(TOKENIZER)

    async def converse() -> Any:
        runner = anthropic_client(found).beta.messages.tool_runner(**HELLO, tools=[f])
        return [message async for message in runner]

    first, last = run(converse())
    assert called == ["é"]
    assert first.content[-1].input == {"a": "é"}
    assert last.content[0].text == "Done."
    assert [message["role"] for message in found.asked[-1].messages] == ["user", "assistant", "tool"]
    assert found.asked[-1].messages[-1] | {"tool_call_id": ""} == {
        "role": "tool",
        "tool_call_id": "",
        "name": "f",
        "content": "result é",
    }


def test_a_schema_is_parsed_by_the_package(run: Any) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    found = service_of('{"name": "Zürich"}')
    parsed = run(anthropic_client(found).messages.parse(**HELLO, output_format=City))
    assert parsed.parsed_output == City(name="Zürich")
    assert found.asked[0].options["json_schema"]["properties"].keys() == {"name"}


def test_tokens_are_counted(run: Any) -> None:
    counted = run(
        anthropic_client(service_of()).messages.count_tokens(model="tiny", messages=HELLO["messages"], tools=TOOLS)
    )
    assert counted.input_tokens == 7


def test_errors_are_raised_by_the_package_as_what_they_are(run: Any) -> None:
    import anthropic
    from anthropic.types.shared.error_response import ErrorResponse

    expected = {
        400: anthropic.BadRequestError,
        401: anthropic.AuthenticationError,
        404: anthropic.NotFoundError,
        413: anthropic.RequestTooLargeError,
        429: anthropic.RateLimitError,
        500: anthropic.InternalServerError,
        503: anthropic.ServiceUnavailableError,
    }
    for status, kind in expected.items():
        refusal = RequestError(status, "why")
        with pytest.raises(kind, match="why"):
            run(anthropic_client(service_of(refusal=refusal)).messages.create(**HELLO))
        if status != 413:  # which the package's types leave out
            ErrorResponse.model_validate(error_body(refusal), strict=True)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 5000 tokens > 4095 maximum"):
        run(anthropic_client(service_of(refusal=ContextLengthError(5000, 4095))).messages.create(**HELLO))


def test_a_failure_in_the_middle_is_raised_by_the_package_and_the_stream_ends_all_the_same(run: Any) -> None:
    import anthropic

    failing = service_of(failure=RequestError(503, "the engine died"), fails_after=1)

    async def read() -> None:
        async with anthropic_client(failing).messages.stream(**HELLO) as stream:
            async for _ in stream:
                pass

    with pytest.raises(anthropic.APIStatusError, match="the engine died"):
        run(read())
    told = run(events(run(ask(failing, MESSAGES, HELLO | {"stream": True}))))
    kinds = [data["type"] for data in told]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "error",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert told[-2]["delta"]["stop_reason"] == "max_tokens"
    assert told[-2]["usage"]["output_tokens"] == failing.fails_after
    assert json.dumps(error_body(failing.failure)) == json.dumps(told[3])  # type: ignore[arg-type]


def test_the_model_that_is_served_is_told_as_the_package_says() -> None:
    from anthropic.types import ModelInfo

    found = model(service_of())
    assert ModelInfo.model_validate(found).max_input_tokens == found["max_model_len"] - 1
