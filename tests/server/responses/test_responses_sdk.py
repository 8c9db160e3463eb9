"""What is told of Responses, as the official package reads it: its types and its client.

The package takes long to import: it is looked at here alone.
"""

from typing import Any

import pytest

from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.responses import ENDPOINTS
from helpers.official_clients import TEXT, ask, events, openai_client, service_of

(RESPONSES,) = ENDPOINTS
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "name": name, "parameters": PARAMETERS, "strict": False} for name in ("f", "g")]
HELLO: Any = {"model": "tiny", "input": "Hello.", "store": False}
ALL: Any = HELLO | {
    "tools": TOOLS,
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "reasoning": {"effort": "high", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    "top_logprobs": 1,
    "metadata": {"a": "b"},
    "temperature": 0.5,
    "top_p": 0.9,
    "max_output_tokens": 100,
}


def comparable(response: Any) -> Any:
    """A response as an object without what differs from one to the next."""
    found = response.to_dict()
    for item in (found, *found["output"]):
        for name in ("id", "call_id", "created_at", "completed_at"):
            item.pop(name, None)
    return found


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("asked", [HELLO | {"tools": TOOLS}, ALL], ids=["plain", "all"])
def test_a_stream_and_a_whole_response_are_the_package_s_and_add_up_to_the_same(
    run: Any, size: int, asked: Any
) -> None:
    from openai import omit
    from openai.lib.streaming.responses._responses import ResponseStreamState
    from openai.types.responses import Response, ResponseStreamEvent
    from pydantic import TypeAdapter

    found = service_of(TEXT, size=size, reasoning_tokens=3)
    whole = Response.model_validate(run(ask(found, RESPONSES, asked)), strict=True)
    told = run(events(run(ask(found, RESPONSES, asked | {"stream": True})), alive_after=1))
    assert [data["sequence_number"] for data in told] == list(range(len(told)))
    event = TypeAdapter(ResponseStreamEvent)
    state: Any = ResponseStreamState(input_tools=asked["tools"], text_format=omit)
    for data in told:
        state.handle_event(event.validate_python(data, strict=True))
    assert [data["type"] for data in told[:4]] == [
        "response.created",
        "response.in_progress",
        "response.in_progress",
        "response.output_item.added",
    ]
    last = Response.model_validate(told[-1]["response"], strict=True)
    assert comparable(last) == comparable(whole)
    assert [data["item"] for data in told if data["type"] == "response.output_item.done"] == [
        item.to_dict() for item in last.output
    ]
    types = ["reasoning", "message", "function_call"]
    assert [item.type for item in whole.output] == types + ([] if asked is ALL else ["function_call"])
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens == 2
    assert whole.usage.output_tokens_details.reasoning_tokens == 3


def test_the_client_s_stream_and_its_parser_end_with_the_response(run: Any) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    found = service_of('{"name": "Zürich"}', size=2)

    async def read() -> Any:
        async with openai_client(found).responses.stream(**HELLO, text_format=City) as stream:
            return [event.type async for event in stream], await stream.get_final_response()

    kinds, streamed = run(read())
    parsed = run(openai_client(found).responses.parse(**HELLO, text_format=City))
    assert streamed.output_parsed == parsed.output_parsed == City(name="Zürich")
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [question.options["json_schema"]["required"] for question in found.asked] == [["name"], ["name"]]


def test_an_answer_that_is_cut_is_incomplete_and_so_is_its_last_item(run: Any) -> None:
    from openai.types.responses import Response

    found = Response.model_validate(run(ask(service_of("Hel", reason="length"), RESPONSES, HELLO)), strict=True)
    assert found.status == found.output[-1].status == "incomplete"  # type: ignore[union-attr]
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    told = run(events(run(ask(service_of("Hel", reason="length"), RESPONSES, HELLO | {"stream": True}))))
    assert told[-1]["type"] == "response.incomplete"
    assert told[-1]["response"]["usage"]["output_tokens"] == 1


def test_a_failure_in_the_middle_is_the_end_that_clients_wait_for(run: Any) -> None:
    from openai.types.responses import ResponseFailedEvent

    failing = service_of(TEXT, size=9, failure=RequestError(503, "the engine died"), fails_after=2)
    *_, done, failed = run(events(run(ask(failing, RESPONSES, HELLO | {"stream": True}))))
    assert done["type"] == "response.output_item.done"
    assert done["item"]["status"] == "incomplete"
    failure = ResponseFailedEvent.model_validate(failed, strict=True).response
    assert failure.error is not None
    assert (failure.status, failure.error.code) == ("failed", "server_error")
    assert failure.error.message == "the engine died"
