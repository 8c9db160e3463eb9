"""Chat completions: a stream adds up to the whole answer, and ends as clients wait for, whatever happens."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from afmoe_mlx.generation import NO_LIMIT, THE_ANSWER
from afmoe_mlx.server import sse
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.openai.chat import CHAT, ChatCompletion
from afmoe_mlx.server.openai.chat_body import ChatBody
from afmoe_mlx.server.question import Call, Progress
from helpers.endpoints import ask, data, events
from helpers.fake_engine import FakeTokenizer
from helpers.fake_service import FakeService

TOKENIZER: Any = FakeTokenizer()
HELLO = {"messages": [{"role": "user", "content": "Hello."}]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
CALLED = {**HELLO, "tools": TOOLS}
TWO_CALLS = '<think>\nHm.\n</think>\n\nX<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>\n' + (
    '<tool_call>{"name": "g", "arguments": {}}</tool_call> Y'
)

nearly_calls = st.lists(
    st.sampled_from(
        [
            *("<think>\n", "</think>\n\n", "X", "é👋", "\n", "<tool_call>", "</tool_call>", "<tool_", '{"name": "f"'),
            *(', "arguments": ', '{"a": [1, "}"]}', "{}", "}", "null", '"', '{"name": "g", "arguments": {}}'),
        ]
    ),
    max_size=12,
).map("".join)


def service(*texts: str, **more: Any) -> FakeService:
    return FakeService(TOKENIZER, texts or ("Hello.",), **more)


def added_up(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """What the chunks of a stream add up to, by the rules of OpenAI's clients: an answer for each index."""
    answers: dict[int, dict[str, Any]] = {}
    for choice in [choice for chunk in chunks for choice in chunk["choices"]]:
        answer = answers.setdefault(choice["index"], {"content": "", "reasoning": "", "calls": [], "reason": None})
        assert answer["reason"] is None
        delta = choice["delta"]
        answer["content"] += delta.get("content", "")
        answer["reasoning"] += delta.get("reasoning_content", "")
        for part in delta.get("tool_calls", []):
            if part["index"] == len(answer["calls"]):
                assert part["id"].startswith("call_")
                assert part["type"] == "function"
                answer["calls"].append([part["function"]["name"], ""])
            answer["calls"][part["index"]][1] += part["function"]["arguments"]
        answer["reason"] = choice["finish_reason"]
    return answers


def told(message: dict[str, Any], reason: str) -> dict[str, Any]:
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", [])]
    reasoning = message.get("reasoning_content", "")
    return {"content": message["content"] or "", "reasoning": reasoning, "calls": calls, "reason": reason}


@settings(max_examples=30, deadline=None)
@given(nearly_calls | st.just(TWO_CALLS), st.integers(1, 9), st.booleans())
def test_a_stream_adds_up_to_the_whole_answer(text: str, size: int, parallel: bool) -> None:
    asked = {**CALLED, "n": 2, "parallel_tool_calls": parallel}
    (*chunks, done) = data(events(CHAT, service(text, "Z", size=size), **asked))
    whole = ask(CHAT, service(text, "Z", size=size), **asked)
    assert done == "[DONE]"
    assert [one["delta"].get("role") for one in (chunk["choices"][0] for chunk in chunks[:2])] == ["assistant"] * 2
    answers = added_up(chunks)
    assert [answers[i] for i in (0, 1)] == [told(c["message"], c["finish_reason"]) for c in whole["choices"]]
    assert all(len(answer["calls"]) <= 1 or parallel for answer in answers.values())
    ChatCompletion.model_validate(whole)


def test_calls_come_with_ids_of_their_own_beside_content_and_reasoning() -> None:
    (choice,) = ask(CHAT, service(TWO_CALLS), **CALLED)["choices"]
    message = choice["message"]
    assert told(message, choice["finish_reason"]) == {
        "content": "X Y",
        "reasoning": "\nHm.\n",
        "calls": [["f", '{"a": "é"}'], ["g", "{}"]],
        "reason": "tool_calls",
    }
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_a_malformed_call_is_a_call_whose_arguments_are_no_json() -> None:
    """Agents tell the model so, and it tries again; as content it would end their turn."""
    (choice,) = ask(CHAT, service('<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>'), **CALLED)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"a": }}'}


@pytest.mark.parametrize(("parallel", "calls"), [(True, 2), (None, 2), (False, 1)])
def test_without_parallel_calls_there_is_one_and_nothing_after_it(parallel: bool | None, calls: int) -> None:
    (choice,) = ask(CHAT, service(TWO_CALLS), **CALLED, parallel_tool_calls=parallel)["choices"]
    assert len(choice["message"]["tool_calls"]) == calls
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("usage", [True, False])
def test_usage_comes_last_where_it_is_asked_for(usage: bool) -> None:
    asked = {**HELLO, "n": 2, "stream_options": {"include_usage": usage, "include_obfuscation": False}}
    (*chunks, done) = data(events(CHAT, service("abc", "abcdef"), **asked))
    assert done == "[DONE]"
    expected = ask(CHAT, service("abc", "abcdef"), **HELLO, n=2)["usage"]
    assert expected["prompt_tokens"] == 7
    assert expected["completion_tokens"] == 3
    assert expected["prompt_tokens_details"] == {"cached_tokens": 2}
    if usage:
        assert chunks.pop()["usage"] == expected
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert not any("usage" in chunk for chunk in chunks)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 8), st.booleans(), st.integers(1, 3))
def test_a_stream_that_fails_tells_it_and_still_ends(after: int, is_known: bool, n: int) -> None:
    error: Exception = RequestError(503, "the engine died", code="engine_failed") if is_known else ValueError("secret")
    found = service("abcdef", failure=error, fails_after=after)
    told = data(events(CHAT, found, **HELLO, n=n, stream_options={"include_usage": True}))
    assert told.pop() == "[DONE]"
    usage = told.pop()["usage"]
    assert usage["prompt_tokens"] == 7
    assert usage["completion_tokens"] == sum(min(max(after - 3 * i, 0), 2) for i in range(n))
    failures = [event for event in told if "error" in event]
    answers = added_up([event for event in told if "error" not in event])
    if found.fails_after < 3 * n:
        assert [failure["error"]["type"] for failure in failures] == ["server_error"]
        assert "secret" not in str(failures)
        assert answers[n - 1]["reason"] == "length"
    assert len(answers) == n
    assert all(answer["reason"] for answer in answers.values())
    assert len(found.ended) == 1


def test_a_refusal_is_raised_before_anything_is_streamed() -> None:
    refusal = RequestError(429, "the queue is full", retry_after=1)
    with pytest.raises(RequestError, match="queue"):
        events(CHAT, service(refusal=refusal), **HELLO)


def test_a_sign_of_life_is_an_empty_chunk_of_an_answer_that_is_not_over() -> None:
    async def signs() -> list[Any]:
        stream: Any = await CHAT.handle(service("a"), ChatBody(**HELLO, n=2, stream=True), Call("1", ""))
        return [(stream.alive(), event) async for event in stream.events]

    found = asyncio.run(signs())
    over: set[int] = set()
    for sign, event in found:
        over |= {c["index"] for e in data([event]) if e != "[DONE]" for c in e["choices"] if c["finish_reason"]}
        if len(over) == 2:
            continue
        ((choice,),) = [chunk["choices"] for chunk in data([sign])]
        assert choice["delta"] == {}
        assert choice["finish_reason"] is None
    assert found[-1][0] == sse.ALIVE


@pytest.mark.parametrize("reads", [0, 1, 3])
def test_a_stream_that_nobody_reads_on_lets_go_of_its_answers(reads: int) -> None:
    found = service("abcdef" * 9)

    async def leave() -> None:
        stream: Any = await CHAT.handle(found, ChatBody(**HELLO, stream=True), Call("1", ""))
        for _ in range(reads):
            await anext(stream.events)
        await stream.events.aclose()
        assert len(found.ended) == (reads > 0)
        del stream
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert len(found.ended) == 1


def test_logprobs_are_told_with_the_content_that_they_are_of() -> None:
    asked = {**HELLO, "logprobs": True, "top_logprobs": 3}
    found = service("Héllo", size=2)
    whole = ask(CHAT, found, **asked)["choices"][0]["logprobs"]["content"]
    assert [bytes(token["bytes"]).decode() for token in whole] == ["Hé", "ll", "o"]
    chunks = [c for e in data(events(CHAT, found, **asked))[:-1] for c in e["choices"] if c["logprobs"]]
    assert [token for choice in chunks for token in choice["logprobs"]["content"]] == whole
    assert all(chunk["delta"]["content"] for chunk in chunks)
    assert [question.top_logprobs for question in found.asked] == [3, 3]


# What a request comes to.


def question(**fields: Any) -> Any:
    found = service()
    ask(CHAT, found, **{**HELLO, **fields})
    return found.asked[0]


def test_what_the_request_does_not_say_is_left_to_the_model() -> None:
    asked = question()
    assert asked.options == {}
    assert asked.template_variables == {}
    assert asked.tools is None
    assert asked.top_logprobs is None


def test_options_reach_the_engine_by_its_names() -> None:
    plain = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "logit_bias": {"5": -100.0}}
    assert question(**plain, stop="end").options == plain | {"stop": ["end"]}
    assert question(stop=["a", "b"]).options == {"stop": ["a", "b"]}
    assert question(repetition_penalty=1.1).options == {"repetition_penalty": 1.1, "repetition_context_size": 0}
    assert question(presence_penalty=1, frequency_penalty=2).options == {
        "presence_penalty": 1,
        "presence_context_size": THE_ANSWER,
        "frequency_penalty": 2,
        "frequency_context_size": THE_ANSWER,
    }
    assert question(max_tokens=5, max_completion_tokens=9).options == {"max_tokens": 9}
    assert question(max_tokens=5.0, temperature=1).options == {"max_tokens": 5, "temperature": 1.0}
    assert question(max_tokens=-1).options == {"max_tokens": NO_LIMIT}
    assert question(reasoning_budget=0).options == {"reasoning_budget": 0}


def test_with_a_seed_each_choice_has_its_own_and_the_first_the_request_s() -> None:
    found = service()
    ask(CHAT, found, **HELLO, n=100, seed=-1)
    seeds = [one.options["seed"] for one in found.asked]
    assert seeds[0] == 2**64 - 1
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_messages_are_taken_in_every_form_that_clients_send() -> None:
    call = {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
    sent = [
        {"role": "developer", "content": [{"type": "text", "text": "a", "cache_control": {}}, {"text": "b"}]},
        {"content": "no role"},
        {"role": "assistant", "content": None, "reasoning": "hm", "reasoning_details": [{}], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}]},
        {"role": "assistant", "reasoning_content": "hm", "reasoning": {"no": "text"}, "refusal": None, "audio": None},
    ]
    assert question(messages=sent).messages == [
        {"role": "developer", "content": "ab"},
        {"role": "user", "content": "no role"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "r", "tool_call_id": "c"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
    ]


@pytest.mark.parametrize(
    ("choice", "offered", "added"),
    [
        (None, TOOLS, {}),
        ("auto", TOOLS, {"tool_choice": "auto"}),
        ("none", None, {"tool_choice": "none"}),
        ("required", TOOLS, {"tool_choice": "required"}),
        (
            {"type": "function", "function": {"name": "g"}},
            TOOLS,
            {"tool_choice": {"type": "function", "function": {"name": "g"}}},
        ),
    ],
)
def test_a_tool_choice_is_shown_to_the_model_or_holds_it(choice: Any, offered: Any, added: Any) -> None:
    asked = question(tools=TOOLS, tool_choice=choice)
    assert asked.tools == offered
    assert asked.options == added


def test_tools_that_are_no_functions_are_left_out_and_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    others = [{"type": "web_search\n", "secret": 1}, {"type": "custom", "name": "x"}]
    assert question(tools=[*others, *TOOLS]).tools == TOOLS
    (line,) = caplog.messages
    assert line.startswith("1: left out")
    assert "'custom'" in line
    assert r"'web_search\n'" in line


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ({"type": "text"}, {}),
        ({"type": "json_object"}, {"json_schema": {"type": "object"}}),
        *(
            ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}, **strict}}, found)
            for strict in ({}, {"strict": True}, {"strict": False})
            for found in [{"json_schema": {"type": "array"}}]
        ),
    ],
)
def test_a_response_format_holds_the_answer(form: dict[str, Any], options: dict[str, Any]) -> None:
    assert question(response_format=form).options == options


@pytest.mark.parametrize("choice", [None, "auto"])
def test_a_response_format_leaves_the_choice_of_tools_that_may_be_called(choice: str | None) -> None:
    asked = question(tools=TOOLS, tool_choice=choice, response_format={"type": "json_object"})
    assert asked.tools == TOOLS
    assert asked.options == {"json_schema": {"type": "object"}, "tool_choice": "auto"}


@pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("minimal", False), ("low", True), ("max", True)])
def test_reasoning_effort_is_a_variable_of_the_template(effort: str, thinks: bool) -> None:
    expected = {"reasoning_effort": effort, "enable_thinking": thinks}
    assert question(reasoning_effort=effort).template_variables == expected
    assert question(reasoning_effort=effort).options == ({"reasoning_budget": 0} if effort == "none" else {})
    assert question(reasoning_effort=effort, reasoning_budget=7).options == {"reasoning_budget": 7}
    asked = question(reasoning_effort=effort, chat_template_kwargs={"enable_thinking": None, "x": 1})
    assert asked.template_variables == {"reasoning_effort": effort, "enable_thinking": None, "x": 1}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, "role"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"stream": 1}, "stream"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop": ["a", ""]}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "schema"),
        ({"stream_options": {"continuous": True}}, "continuous"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"messages": []}}, "messages"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ask(CHAT, service(), **{**HELLO, **fields})
    assert named in json.dumps(refused.value.errors(include_url=False, include_context=False))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        ask(CHAT, service(), **HELLO, **fields)
    assert refused.value.status == 400
    assert refused.value.param == param


def test_a_stream_tells_how_far_the_prompt_is_read_if_it_is_asked_to() -> None:
    read = [Progress(9, 2, 5), Progress(9, 2, 9)]
    chunks = data(events(CHAT, service("Yes.", read=read), **HELLO, return_progress=True))[:-1]
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert [(one["total"], one["cache"], one["processed"]) for one in told] == [(9, 2, 5), (9, 2, 9)]
    assert all(one["time_ms"] >= 0 for one in told)
    usage = {"stream_options": {"include_usage": True}}
    *others, last = data(events(CHAT, service("Yes.", read=read), **HELLO, **usage, return_progress=True))[:-1]
    assert all(passed >= 0 for passed in (last["timings"]["prompt_ms"], last["timings"]["predicted_ms"]))
    assert not any("timings" in chunk for chunk in others)
    assert "timings" not in data(events(CHAT, service("Yes."), **HELLO, **usage))[-2]
    assert added_up(chunks)[0]["content"] == "Yes."
    silent = data(events(CHAT, service("Yes.", read=read), **HELLO))[:-1]
    assert not any("prompt_progress" in chunk for chunk in silent)
    with pytest.raises(ValidationError, match="stream"):
        ChatBody.model_validate({**HELLO, "return_progress": True})
