"""Calls that must be made are read back as calls of the tools, their arguments as their schemas say."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from afmoe_mlx import load, stream_generate
from afmoe_mlx.errors import InputError
from afmoe_mlx.generation import ConstraintOptions, check_options
from afmoe_mlx.messages import read_answer
from afmoe_mlx.messages.tool_formats import FORMATS, format_of
from afmoe_mlx.tokenizer import Tokenizer
from helpers.tiny import tiny_folder
from helpers.tiny_tokenizers import byte_level

# How templates show that they know of tools, and in what format.
TEMPLATES = {
    "hermes": "{{ tools }}<tool_call>",
    "qwen3_coder": "{{ tools }}<tool_call><function=",
    "pythonic": "{{ tools }}<|tool_call_start|>",
}
PARAMETERS: dict[str, Any] = {
    "get.weather": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Hanoi", "Zürich", 'the "old" one']},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "exact": {"type": ["boolean", "null"]},
            "parts": {"$ref": "#/$defs/parts"},
        },
        "required": ["city", "exact"],
        "$defs": {"parts": {"type": "array", "items": {"type": ["number", "boolean"], "maximum": 9}, "maxItems": 2}},
    },
    "nothing": {},
    "größe": {"properties": {"a": {"const": [3, None]}}, "required": ["a"]},
    "all_optional": {"type": "object", "properties": {name: {"type": "boolean"} for name in "xyz"}},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": value}} for name, value in PARAMETERS.items()]
NAMED = {"type": "function", "function": {"name": "get.weather"}}


def tokenizer_of(name: str, *, special: bool = False) -> Tokenizer:
    backend = byte_level()
    if special:
        backend.add_special_tokens([FORMATS[name].begin, FORMATS[name].end])
    end = backend.token_to_id("<|im_end|>")
    tokenizer = Tokenizer(backend, eos_token_ids=[end], chat_templates={"default": TEMPLATES[name]})
    assert format_of(tokenizer) is FORMATS[name]
    return tokenizer


@pytest.fixture(scope="module", params=[(name, special) for name in TEMPLATES for special in (False, True)], ids=str)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param[0], special=request.param[1])


def written(tokenizer: Tokenizer, options: dict[str, Any], chance: random.Random) -> str:
    """An answer whose tokens are drawn at random, and which ends where it may."""
    held = ConstraintOptions(tools=TOOLS, **options).begin(tokenizer, 300, [])()
    (end,) = tokenizer.eos_token_ids
    tokens: list[int] = []
    while not tokens or tokens[-1] != end:
        found = held.forced(500 - len(tokens))
        if not found:
            allowed = [token for token, may in enumerate(held.mask().tolist()) if may]  # type: ignore[arg-type]
            found = [end if end in allowed else chance.choice(allowed)]
        for token in found:
            held.advance(token)
        tokens += found
    return tokenizer.decode(tokens[:-1])


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), choice=st.sampled_from(["required", NAMED]))
def test_what_is_drawn_is_read_as_calls_that_satisfy_the_schemas(tokenizer: Tokenizer, seed: int, choice: Any) -> None:
    answer = read_answer(written(tokenizer, {"tool_choice": choice}, random.Random(seed)), tokenizer, TOOLS)
    assert answer.content == ""
    assert answer.tool_calls
    for call in answer.tool_calls:
        assert call.error is None
        arguments = json.loads(call.arguments)
        Draft202012Validator(PARAMETERS[call.name]).validate(arguments)
        assert arguments.keys() <= PARAMETERS[call.name].get("properties", {}).keys()
    if choice is NAMED:
        assert [call.name for call in answer.tool_calls] == ["get.weather"]


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999))
def test_where_a_schema_and_tools_are_offered_the_answer_is_one_or_the_other(tokenizer: Tokenizer, seed: int) -> None:
    schema = {"oneOf": [{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, {"const": []}]}
    options = {"json_schema": schema, "tool_choice": "auto"}
    text = written(tokenizer, options, random.Random(seed))
    answer = read_answer(text, tokenizer, TOOLS)
    assert ConstraintOptions(tools=TOOLS, **options).violation(text, is_complete=True) is None
    if not answer.tool_calls:
        Draft202012Validator(schema).validate(json.loads(answer.content))
        return
    assert answer.content == ""
    for call in answer.tool_calls:
        Draft202012Validator(PARAMETERS[call.name]).validate(json.loads(call.arguments))


def test_a_schema_or_calls_may_be_written_and_nothing_else(tokenizer: Tokenizer) -> None:
    form = format_of(tokenizer)
    assert form is not None
    rules = ConstraintOptions(tools=TOOLS, json_schema={"type": "array"}, tool_choice="auto")
    calls = form.write([("nothing", {}), ("all_optional", {"y": True})])
    for text, is_taken in (("[1, null]", True), (calls, True), ("{}", False), ("x" + calls, False)):
        held = rules.begin(tokenizer, 300, [])()
        assert (all(map(held.accepts, tokenizer.encode(text))) and held.is_complete) == is_taken


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_text_is_an_argument_of_any_format(name: str) -> None:
    tokenizer = tokenizer_of(name)
    tools = [{"name": "say", "parameters": {"properties": {"text": {"type": "string"}}, "required": ["text"]}}]
    rules = ConstraintOptions(tools=tools, tool_choice="required")
    text = "a \"b\"\n<c> é\\ </parameter 'd'"
    call = FORMATS[name].write([("say", {"text": text})])
    if name == "pythonic":  # as JSON, which is Python too
        call = f"<|tool_call_start|>[say(text={json.dumps(text, ensure_ascii=False)})]<|tool_call_end|>"
    held = rules.begin(tokenizer, 300, [])()
    for token in tokenizer.encode(call):
        held.advance(token)
    assert held.is_complete
    (found,) = read_answer(call, tokenizer, tools).tool_calls
    assert json.loads(found.arguments) == {"text": text}


def test_several_calls_may_be_made_where_any_is_required(tokenizer: Tokenizer) -> None:
    form = format_of(tokenizer)
    assert form is not None
    calls = form.write([("nothing", {}), ("all_optional", {"y": True}), ("all_optional", {"x": False, "z": True})])
    for choice, is_taken in (("required", True), (NAMED, False)):
        held = ConstraintOptions(tools=TOOLS, tool_choice=choice).begin(tokenizer, 300, [])()
        assert all(map(held.accepts, tokenizer.encode(calls))) == held.is_complete == is_taken


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice is 'required', and there are no tools"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice is 'always': expected auto, none, required or a func"),
        (
            {"tools": TOOLS, "tool_choice": {"function": {"name": "f"}}},
            "tool_choice is 'f': ex",
        ),
        ({"tools": [{"name": "f"}, {"name": "f"}], "tool_choice": "required"}, "two tools are called 'f'"),
        ({"tools": [{"name": "f", "parameters": {"enum": []}}], "tool_choice": "required"}, "tools: f: nothing can"),
        ({"tools": TOOLS, "tool_choice": "required", "regex": "a"}, "regex and tool_choice both constrain the answer"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_in_a_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_options(**options)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_alone_constrain_nothing(choice: str | None) -> None:
    assert not ConstraintOptions(tools=TOOLS, tool_choice=choice).is_given


def test_what_cannot_be_enforced_of_a_tools_schema_is_left_to_the_tool() -> None:
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "array", "uniqueItems": True}}, "not": {}}}]
    check_options(tools=tools, tool_choice="required")


def test_a_model_calls_after_its_reasoning_and_one_that_knows_no_tools_is_a_line(tmp_path: Any) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "m", template=TEMPLATES["hermes"]))
    chunks = list(
        stream_generate(
            model, tokenizer, "<think>\n", tools=TOOLS, tool_choice=NAMED, reasoning_budget=2, max_tokens=250
        )
    )
    answer = read_answer("<think>" + "".join(chunk.text for chunk in chunks), tokenizer, TOOLS)
    assert [(call.name, call.error) for call in answer.tool_calls] == [("get.weather", None)]
    assert answer.reasoning
    assert chunks[-1].violation is None
    with pytest.raises(InputError, match="tool_choice: this model's chat template knows no tools"):
        stream_generate(model, tokenizer.with_chat_template("x"), "hello", tools=TOOLS, tool_choice="required")
