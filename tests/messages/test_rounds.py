"""Rounds of calls and results in the messages of a conversation."""

from typing import Any

import pytest

from afmoe_mlx.messages.prompts import Prompts
from afmoe_mlx.messages.rounds import NOT_MADE, Call, calls_in, calls_of, closed, open_calls, readable, result_of
from helpers.fake_engine import FakeTokenizer
from helpers.toolboxes import called, schema

HERMES: Any = FakeTokenizer()
ASKED = {"role": "user", "content": "go"}


class Pythonic(FakeTokenizer):
    """The same with calls as LFM2 writes them, and no place for them in its template."""

    chat_template = tool_template = "tools as in <|tool_call_start|>"


def answer(*names: str, before: Any = (ASKED,)) -> dict[str, Any]:
    text = "I look. " + "".join(called(name, '{ "a": 1}') for name in names)
    return {"role": "assistant", "content": text} | calls_in(text, "", before, HERMES, [schema("f"), schema("g")])


def test_a_call_is_open_until_it_has_its_result_or_another_message_comes() -> None:
    said = [ASKED, answer("f", "g")]
    first, second = open_calls(said)
    assert (first, second) == (Call("call_1", "f", '{ "a": 1}'), Call("call_2", "g", '{ "a": 1}'))
    assert open_calls([*said, result_of(second, "2")]) == [first]
    assert closed([*said, result_of(second, "2")])[2:] == [result_of(second, "2"), result_of(first, NOT_MADE)]
    assert open_calls([*said, ASKED]) == open_calls([]) == open_calls([result_of(first, "1")]) == []


def test_ids_are_those_that_no_other_call_has() -> None:
    later = answer("f", "g", before=[answer("f", before=[answer("g")]), ASKED])
    assert [call.id for call in calls_of(later)] == ["call_1", "call_3"]


def test_an_answer_without_a_call_of_what_is_offered_has_nothing_more() -> None:
    assert calls_in("I look. " + called("h"), "", [], HERMES, [schema("f")]) == {}


@pytest.mark.parametrize("opened", ["", "<think>\n"])
def test_reasoning_stays_in_the_content_and_calls_do_not(opened: str) -> None:
    text = ("" if opened else "<think>\n") + "hm</think>\n\nI look. " + called("f")
    found = calls_in(text, opened, [], HERMES, [schema("f")])
    assert (found["content"], found["written"]) == ("<think>\nhm</think>\n\nI look. ", opened + text)


def test_what_was_written_goes_back_to_a_model_that_writes_so_and_to_another_as_that_one_does() -> None:
    pythonic: Any = Pythonic()
    said = answer("f")
    assert readable(said, HERMES) == said
    other = readable(said, pythonic)
    assert other == {key: value for key, value in said.items() if key != "written"}
    first, second = (
        Prompts(one, {}, [schema("f")])._render([ASKED, message])
        for one, message in ((HERMES, said), (pythonic, other))
    )
    assert '<assistant> I look. <tool_call>\n{"name": "f", "arguments": { "a": 1}}\n</tool_call> </>' in first
    assert "<assistant> I look. <|tool_call_start|>[f(a=1)]<|tool_call_end|> </>" in second
