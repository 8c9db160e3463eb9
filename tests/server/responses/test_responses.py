"""Requests of Responses become questions, or an error that names what is wrong; what is told adds up."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.http.reading import check
from afmoe_mlx.server.question import Question
from afmoe_mlx.server.responses import ENDPOINTS
from afmoe_mlx.server.responses.forms import ResponsesBody
from afmoe_mlx.server.responses.questions import question_of, sealed
from helpers.fake_engine import FakeTokenizer
from helpers.fake_service import FakeService
from helpers.official_clients import ask, events

(RESPONSES,) = ENDPOINTS
TOKENIZER: Any = FakeTokenizer()
TOOL: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
SHOWN = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
HELLO: Any = {"model": "tiny", "input": "Hello."}
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "array"}, "strict": True}


def question(**fields: Any) -> Question:
    body = check(ResponsesBody, HELLO | fields, ignore_unknown=False)
    return question_of(body, "1")


def test_items_are_a_conversation_of_messages() -> None:
    part = {"type": "input_text", "text": "One."}
    asked = question(
        instructions="Be brief.",
        input=[
            {"type": "message", "role": "developer", "content": [part]},
            {"role": "user", "content": [part, {"type": "input_text", "text": " Two."}]},
            {"role": "user", "content": "Three.", "private": 1},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "gAAAA"},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "I look.\n", "annotations": [], "logprobs": []}],
            },
            {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": '{"a":1}'},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}", "status": "completed"},
            {"type": "function_call_output", "call_id": "1", "output": "yes"},
            {"type": "function_call_output", "call_id": "2", "output": [part]},
            {"type": "reasoning", "summary": [], "encrypted_content": sealed("So é.")},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "…"}]},
            {"role": "system", "content": None},
        ],
    )
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert asked.messages == [
        {"role": "system", "content": "Be brief.\n\nOne."},
        {"role": "user", "content": "One. Two.\n\nThree."},
        {"role": "assistant", "content": "I look.\n", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "yes"},
        {"role": "tool", "tool_call_id": "2", "name": "g", "content": "One."},
        {"role": "assistant", "content": "No.", "reasoning_content": "So é.…"},
        {"role": "system", "content": ""},
    ]
    assert question().messages == [{"role": "user", "content": "Hello."}]


@pytest.mark.parametrize(
    ("fields", "options", "variables"),
    [
        ({"max_output_tokens": 10**6, "temperature": 0.5, "top_p": 0.9}, {"max_tokens": 10**6}, {}),
        ({"max_output_tokens": 1, "reasoning": {}, "text": {}, "tools": []}, {"max_tokens": 1}, {}),
        (
            {"reasoning": {"effort": "high", "summary": "auto"}},
            {},
            {"reasoning_effort": "high", "enable_thinking": True},
        ),
        (
            {"reasoning": {"effort": "none"}},
            {"reasoning_budget": 0},
            {"reasoning_effort": "none", "enable_thinking": False},
        ),
        ({"text": {"format": SCHEMA, "verbosity": "low"}}, {"json_schema": {"type": "array"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"json_schema": {"type": "object"}}, {}),
        ({"text": {"format": {"type": "text"}}, "tools": [TOOL], "tool_choice": "auto"}, {"tool_choice": "auto"}, {}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tool_choice": "required"}, {}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {},
        ),
    ],
)
def test_what_configures_an_answer_is_asked_for(fields: Any, options: Any, variables: Any) -> None:
    asked = question(**fields)
    assert asked.options | options == asked.options
    assert asked.template_variables == variables
    assert ("temperature" in asked.options) == ("temperature" in fields)


def test_functions_are_shown_and_other_tools_left_out_with_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    others = [{"type": kind, "name": "x", "tools": [TOOL]} for kind in ("namespace", "web_search", "custom")]
    assert question(tools=[TOOL, *others]).tools == [SHOWN]
    (line,) = caplog.messages
    assert all(other["type"] in line for other in others)


def test_tools_that_are_not_allowed_are_not_shown() -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    asked = question(tools=[TOOL, TOOL | {"name": "g"}], tool_choice=allowed)
    assert asked.tools == [SHOWN]
    assert asked.options["tool_choice"] == "required"
    assert question(tools=[TOOL], tool_choice="none", text={"format": SCHEMA}).tools is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"nonsense": 1}, "nonsense"),
        ({"seed": 1}, "seed"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_image"),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": [{"type": "input_file"}]}]},
            "input_file",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "tool", "content": "x"}]}, "role"),
        ({"text": {"format": {"type": "grammar"}}}, "grammar"),
        ({"text": {"nonsense": 1}}, "nonsense"),
        ({"reasoning": {"nonsense": 1}}, "nonsense"),
        ({"reasoning": {"effort": "utmost"}}, "effort"),
        ({"include": ["nonsense"]}, "include"),
        ({"tool_choice": {"type": "web_search_preview"}}, "web_search_preview"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]}},
            "'x'",
        ),
        ({"tools": [TOOL, TOOL]}, "'f'"),
        ({"tools": [TOOL], "tool_choice": "required", "text": {"format": SCHEMA}}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named) as error:
        question(**fields)
    assert error.value.status == 400


def test_hints_change_nothing_and_empty_fields_are_none() -> None:
    hinted = {name: {"x": "1"} for name in ResponsesBody.HINTS}
    empty = dict.fromkeys(("previous_response_id", "conversation", "prompt", "stream"))
    assert question(**hinted, **empty, background=False) == question()


def told(service: FakeService, **fields: Any) -> tuple[Any, list[Any]]:
    """A whole response, and the events of another."""

    async def both() -> tuple[Any, list[Any]]:
        whole = await ask(service, RESPONSES, HELLO | fields)
        return whole, await events(await ask(service, RESPONSES, HELLO | fields | {"stream": True}))

    return asyncio.run(both())


def test_no_parallel_tool_calls_holds() -> None:
    service = FakeService(TOKENIZER, [f"x{CALL}\n{CALL}y"], size=80)
    whole, streamed = told(service, tools=[TOOL], parallel_tool_calls=False)
    assert [item["type"] for item in whole["output"]] == ["message", "function_call"]
    assert sum(data["type"] == "response.output_item.added" for data in streamed) == 2


def test_what_an_answer_falls_short_of_is_told() -> None:
    whole, streamed = told(FakeService(TOKENIZER, ["x"], violation="why"))
    assert whole["violation"] == streamed[-1]["response"]["violation"] == "why"
    assert "violation" not in told(FakeService(TOKENIZER))[0]


@pytest.mark.parametrize("asked", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
def test_log_probabilities_are_told_once_with_the_text_they_are_of(asked: Any) -> None:
    text = f"<think>Hm.</think>\n\n  Hello.{CALL} Bye."
    service = FakeService(TOKENIZER, [text], size=1)
    whole, streamed = told(service, tools=[TOOL], **asked)
    said = [data["logprobs"] for data in streamed if data["type"] == "response.output_text.done"]
    assert said == [item["content"][0]["logprobs"] for item in whole["output"] if item["type"] == "message"]
    deltas = [data for data in streamed if data["type"] == "response.output_text.delta"]
    every = [*said[0], *said[1]]
    assert every == [logprob for data in deltas for logprob in data["logprobs"]]
    assert len(every) == len(text)  # the service has one for every piece, whatever it is
    assert said[1][-1] == {"token": ".", "bytes": [46], "logprob": -0.5, "top_logprobs": []}
    assert service.asked[0].top_logprobs == asked.get("top_logprobs", 0)
    assert told(service)[0]["output"][1]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("summary", [None, "auto"])
def test_reasoning_that_comes_back_is_what_it_was(summary: str | None) -> None:
    asked = {"reasoning": {"summary": summary}, "include": ["reasoning.encrypted_content"]}
    whole, _ = told(FakeService(TOKENIZER, ["<think>\nHm.\n</think>\n\nYes."], size=2), **asked)
    item = whole["output"][0]
    for kept in ({"content", "summary"}, {"encrypted_content"}):
        sent = {name: value for name, value in item.items() if name in {"type", *kept}}
        assert question(input=[sent]).messages[0]["reasoning_content"] == "\nHm.\n"
    assert bool(item["summary"]) == (summary is not None)


pieces = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "Hm.", "\n", " ", "é👋", CALL, CALL[:-3], CALL[:40], '<tool_call>{"name": "f"', "{}"]
    ),
    max_size=8,
).map("".join)
FIELDS = {
    "response.output_text.delta": "text",
    "response.reasoning_text.delta": "text",
    "response.reasoning_summary_text.delta": "text",
    "response.function_call_arguments.delta": "arguments",
}


@settings(max_examples=30, deadline=None)
@given(pieces, st.integers(1, 30), st.sampled_from([None, "auto"]))
def test_a_stream_adds_up_to_the_whole_response(answer: str, size: int, summary: str | None) -> None:
    service = FakeService(TOKENIZER, [answer], size=size)
    whole, streamed = told(service, tools=[TOOL], reasoning={"summary": summary})
    texts: dict[str, str] = {}
    open_item = ""
    for data in streamed:
        match data:
            case {"type": "response.output_item.added", "output_index": index, "item": {"id": item_id}}:
                assert (open_item, index) == ("", len(texts))
                open_item, texts[item_id] = item_id, ""
            case {"type": kind, "item_id": item_id, "delta": delta} if kind in FIELDS:
                assert item_id == open_item
                texts[item_id] += delta
            case {"type": "response.output_item.done", "item": {"id": item_id}}:
                assert item_id == open_item
                open_item = ""
    assert streamed[-1]["type"] == "response.completed"
    last = streamed[-1]["response"]
    assert [item["id"] for item in last["output"]] == list(texts)
    for item, other in zip(last["output"], whole["output"], strict=True):
        held = item.get("content") or item.get("summary") or [{"text": item.get("arguments")}]
        assert texts[item["id"]] == held[0]["text"] or not texts[item["id"]]
        assert {**item, "id": "", "call_id": ""} == {**other, "id": "", "call_id": ""}
    assert last["usage"] == whole["usage"]
