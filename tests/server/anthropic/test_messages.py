"""Requests of Messages become questions, or an error that names what is wrong; what is told adds up."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.server.anthropic import ENDPOINTS
from afmoe_mlx.server.anthropic.errors import error_body
from afmoe_mlx.server.anthropic.forms import MessagesBody
from afmoe_mlx.server.anthropic.questions import arguments_of, input_of, question_of
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.http.reading import check
from afmoe_mlx.server.question import Question
from helpers.fake_engine import FakeTokenizer
from helpers.fake_service import FakeService
from helpers.official_clients import ask, events

MESSAGES, COUNT = ENDPOINTS
TOKENIZER: Any = FakeTokenizer()
TOOL: Any = {"name": "f", "input_schema": {"type": "object"}}
HELLO: Any = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello."}]}
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def question(**fields: Any) -> Question:
    body = check(MessagesBody, HELLO | fields, ignore_unknown=False)
    return question_of(body, "1")


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def test_a_conversation_of_blocks_is_one_of_messages() -> None:
    asked = question(
        system=[text("Be brief.", cache_control={"type": "ephemeral"}), text("Be kind.")],
        messages=[
            {"role": "system", "content": "Now."},
            user(text("One.", citations=None), text("Two.")),
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "redacted_thinking", "data": "x"},
                    text("I look.\n"),
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"b": "é", "a": None}},
                    {"type": "tool_use", "id": "2", "name": "g", "input": {}, "caller": {"type": "direct"}},
                ],
            },
            user(
                {"type": "tool_result", "tool_use_id": "1", "content": [text("a"), text("b")]},
                {"type": "tool_result", "tool_use_id": "2", "content": "no", "is_error": True},
                {"type": "tool_result", "tool_use_id": "3", "content": [{"type": "tool_reference", "tool_name": "h"}]},
                text("Well?"),
            ),
            {"role": "user", "content": "More."},
        ],
    )
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": "é", "a": null}'}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert asked.messages == [
        {"role": "system", "content": "Be brief.\nBe kind.\n\nNow."},
        {"role": "user", "content": "One.\nTwo."},
        {"role": "assistant", "content": "I look.\n", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "a\nb"},
        {"role": "tool", "tool_call_id": "2", "name": "g", "content": "Error: no"},
        {"role": "tool", "tool_call_id": "3", "content": "h"},
        {"role": "user", "content": "Well?\n\nMore."},
    ]
    assert not asked.continues


def test_an_answer_that_has_begun_is_gone_on_with() -> None:
    begun = [{"type": "thinking", "thinking": "Hm."}, text("One"), text(", two")]
    asked = question(messages=[*HELLO["messages"], {"role": "assistant", "content": begun}])
    assert asked.continues
    assert asked.messages[-1] == {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nOne, two"}


@pytest.mark.parametrize(
    ("fields", "options", "variables"),
    [
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["x"]},
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["x"]},
            {},
        ),
        ({"stop_sequences": [], "tools": [], "temperature": None}, {}, {}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"}},
            {"reasoning_budget": 1024},
            {"enable_thinking": True},
        ),
        ({"thinking": {"type": "adaptive"}}, {}, {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"reasoning_budget": 0}, {"enable_thinking": False}),
        ({"output_config": {"effort": "high", "format": None}}, {}, {"reasoning_effort": "high"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "array"}}}},
            {"json_schema": {"type": "array"}},
            {},
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {}, {}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tool_choice": "required"}, {}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {},
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tool_choice": "none"}, {}),
    ],
)
def test_what_configures_an_answer_is_asked_for(fields: Any, options: Any, variables: Any) -> None:
    asked = question(**fields)
    assert asked.options == {"max_tokens": 9} | options
    assert asked.template_variables == variables


def test_a_tool_looks_the_same_whatever_marks_it_has_and_others_are_left_out_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    marked = {"defer_loading": True, "input_schema": {"x": 1}, "type": "custom", "description": "d", "name": "g"}
    asked = question(tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}, marked])
    assert asked.tools == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "g", "description": "d", "parameters": {"x": 1}}},
    ]
    (line,) = caplog.messages
    assert "web_search_20250305" in line
    assert question(tools=[TOOL], tool_choice={"type": "none"}).tools is None


def image(role: str) -> Any:
    return [{"role": role, "content": [{"type": "image", "source": {}}]}]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": image("user")}, "image"),
        ({"messages": image("assistant")}, "image"),
        ({"messages": [user({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]})]}, "image"),
        ({"messages": [user({"type": "tool_use", "id": "1", "name": "f", "input": {}})]}, "tool_use"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"nonsense": 1}, "nonsense"),
        ({"thinking": {"type": "between_tools"}}, "between_tools"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens"),
        ({"thinking": {"type": "adaptive", "nonsense": 1}}, "nonsense"),
        ({"output_config": {"nonsense": 1}}, "nonsense"),
        ({"output_config": {"effort": "utmost"}}, "effort"),
        ({"tool_choice": {"type": "some"}}, "some"),
        ({"tool_choice": {"type": "any", "nonsense": 1}}, "nonsense"),
        ({"tools": [{"name": "f"}]}, "input_schema"),
        ({"tools": [TOOL, TOOL]}, "'f'"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "any"},
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "output_config.format",
        ),
        (
            {
                "messages": [
                    *HELLO["messages"],
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
                ]
            },
            "tool_result",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named) as error:
        question(**fields)
    assert error.value.status == 400
    assert error_body(error.value)["error"]["type"] == "invalid_request_error"


def test_hints_change_nothing_and_empty_fields_are_none() -> None:
    hinted = {name: {"x": 1} for name in MessagesBody.HINTS} | {"mcp_servers": [], "container": None, "thread": None}
    assert question(**hinted) == question()


def test_threads_are_refused_so_that_clients_send_all_again() -> None:
    with pytest.raises(RequestError) as error:
        question(thread={"type": "create"})
    assert error_body(error.value)["error"]["details"] == {"error_code": "thread_unsupported_request"}


def told(service: FakeService, **fields: Any) -> tuple[Any, list[Any]]:
    """A whole message, and the events of another."""

    async def both() -> tuple[Any, list[Any]]:
        whole = await ask(service, MESSAGES, HELLO | fields)
        return whole, await events(await ask(service, MESSAGES, HELLO | fields | {"stream": True}), alive_after=1)

    return asyncio.run(both())


def test_disable_parallel_tool_use_holds() -> None:
    service = FakeService(TOKENIZER, [f"x{CALL}\n{CALL}y"], size=80)
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    whole, streamed = told(service, tools=[TOOL], tool_choice=choice)
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use"]
    assert sum(data["type"] == "content_block_start" for data in streamed) == 2
    assert [block["type"] for block in told(service, tools=[TOOL])[0]["content"]][1:] == [
        "tool_use",
        "tool_use",
        "text",
    ]


def test_a_stop_sequence_is_told() -> None:
    whole, streamed = told(FakeService(TOKENIZER, ["x"], stop_sequence="END"), stop_sequences=["END"])
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "END")
    assert streamed[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


def test_what_an_answer_falls_short_of_is_told() -> None:
    whole, streamed = told(FakeService(TOKENIZER, ["x"], violation="why"))
    assert whole["violation"] == streamed[-2]["delta"]["violation"] == "why"
    assert "violation" not in told(FakeService(TOKENIZER))[0]


def test_reasoning_that_is_omitted_is_told_without_its_text() -> None:
    service = FakeService(TOKENIZER, ["<think>Hm.</think>Yes."])
    whole, streamed = told(service, thinking={"type": "adaptive", "display": "omitted"})
    assert [block.get("thinking", block.get("text")) for block in whole["content"]] == ["", "Yes."]
    assert "Hm" not in json.dumps(streamed)


def test_the_beginning_is_told_once_with_the_first_sign_of_life() -> None:
    async def read() -> tuple[str, str, list[Any]]:
        stream = await ask(FakeService(TOKENIZER), MESSAGES, HELLO | {"stream": True})
        return stream.alive(), stream.alive(), await events(stream)

    start, ping, rest = asyncio.run(read())
    message = json.loads(start.partition("data: ")[2])["message"]
    assert (message["usage"]["input_tokens"], message["usage"]["cache_read_input_tokens"]) == (5, 2)
    assert ping == 'event: ping\ndata: {"type":"ping"}\n\n'
    assert rest[0]["type"] == "content_block_start"


# What an answer may hold, whole or not.
pieces = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "Hm.", "\n", " ", "é👋", CALL, CALL[:-3], CALL[:40], '<tool_call>{"name": "f"', "{}"]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=30, deadline=None)
@given(pieces, st.integers(1, 30))
def test_a_stream_adds_up_to_the_whole_message(answer: str, size: int) -> None:
    whole, streamed = told(FakeService(TOKENIZER, [answer], size=size), tools=[TOOL])
    content: list[Any] = []
    is_open = False
    for data in streamed:
        match data:
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert (index, is_open) == (len(content), False)
                content.append(block)
                is_open = True
            case {"type": "content_block_delta", "index": index, "delta": {"type": _, **more}}:
                assert (index, is_open) == (len(content) - 1, True)
                (name,) = more
                content[-1][name] = more[name] if name == "signature" else content[-1].get(name, "") + more[name]
            case {"type": "content_block_stop", "index": index}:
                assert (index, is_open) == (len(content) - 1, True)
                is_open = False
    assert not is_open
    for block in content:
        if block["type"] == "tool_use":
            block["input"] = input_of(block.pop("partial_json", ""))
    assert [block | {"id": ""} for block in content] == [block | {"id": ""} for block in whole["content"]]
    assert all(block.get("text", "x").strip() and block.get("thinking", "x").strip() for block in content)
    assert streamed[-2]["usage"] == whole["usage"]


@given(pieces | st.sampled_from(['{"a": NaN}', "[" * 10**5, "[1]", '{"a": 1e999}', '{"b": [{}]}', ""]))
def test_arguments_are_an_object_that_becomes_them_again(arguments: str) -> None:
    found = input_of(arguments)
    json.dumps(found, allow_nan=False)
    again = arguments_of(found)
    assert again == arguments or json.loads(again) == json.loads(arguments or "{}")
