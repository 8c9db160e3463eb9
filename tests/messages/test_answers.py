"""What a model wrote comes apart into content, reasoning and calls, the same wherever it is cut; nothing is lost."""

import json
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.messages import (
    Answer,
    AnswerReader,
    ArgumentsDelta,
    CallEnd,
    CallStart,
    ContentDelta,
    ToolCall,
    read_answer,
)
from afmoe_mlx.messages.incoming import Incoming, MalformedError
from afmoe_mlx.messages.tool_formats import FORMATS
from helpers.fake_engine import FakeTokenizer
from helpers.markdown_texts import cuts, split

TOKENIZER: Any = FakeTokenizer()
PARAMETERS = {"properties": {"from": {"type": ["null", "boolean", "number"]}, "class_2": {"type": ["array", "object"]}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("f", "g", "a.b")]


def reader(form: str, tools: Any = TOOLS, **more: Any) -> AnswerReader:
    return AnswerReader(TOKENIZER, tools, tool_format=form, **more)


def read(form: str, text: str, tools: Any = TOOLS, **more: Any) -> Answer:
    return read_answer(text, TOKENIZER, tools, tool_format=form, **more)


# Calls and what stands around them, with all that a reader may stumble over.
words = st.lists(
    st.sampled_from(
        ["X", "é", "👋", "\n", "'", '"', "\\", "'''", "{", "}", "[", ")", ",", "</tool_call>", "<|tool_call_end|>", "#"]
    ),
    max_size=5,
).map("".join)
plain = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
nested = st.recursive(
    plain | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
).filter(lambda value: isinstance(value, list | dict))
calls = st.lists(
    st.tuples(
        st.sampled_from(["f", "g", "a.b"]),
        st.fixed_dictionaries({}, optional={"text": words, "from": plain, "class_2": nested}),
    ),
    min_size=1,
    max_size=3,
)
around = st.sampled_from(
    ["", "\n", "Let me see. ", "</tool_call>", "<tool_call", "<tool_call> ", "<|tool_call_start|> [", "<|tool_call"]
)


def one_by_one(style: Any) -> Any:
    return lambda found: "".join(f"<tool_call>{style(*call)}</tool_call>" for call in found)


WRITERS = {
    "hermes": [
        FORMATS["hermes"].write,
        one_by_one(lambda name, given: json.dumps({"arguments": given, "name": name}, indent=1)),
        one_by_one(lambda name, given: json.dumps({"name": name, "arguments": json.dumps(given)})),
    ],
    "qwen3_coder": [FORMATS["qwen3_coder"].write],
    "pythonic": [
        FORMATS["pythonic"].write,
        lambda found: "".join(
            "<|tool_call_start|> [ "
            + f"{name} (\n{', '.join(f'{key} = {json.dumps(value)}' for key, value in given.items())} )"
            + "\n]<|tool_call_end|>"
            for name, given in found
        ),
        lambda found: "".join(
            f"<|tool_call_start|>[{json.dumps({'name': name, 'arguments': given})}]<|tool_call_end|>"
            for name, given in found
        ),
    ],
}


# Pieces of calls. X, Y and Z are what nothing but a model's own words has.
PIECES = {
    "hermes": (
        '<tool_call>¦</tool_call>¦{"name": "f", "arguments": ¦{"arguments": ¦"name": "g"¦"name": "ZZ"¦{"name": ¦'
        '{"X": 1}¦"{\\"Y\\": 1}"¦null¦"X\\u00e9¦"Y"¦\\¦"¦{¦}¦}\n¦, ¦[¦]¦: ¦1¦.5e¦-¦true¦XYZ¦\n¦<tool_¦call>¦<'
    ),
    "qwen3_coder": (
        "<tool_call>¦</tool_call>¦<function=f>¦<function=ZZ>¦<function=¦g>¦</function>¦<parameter=X>¦<parameter=¦Y>¦"
        "</parameter>¦</para¦meter>¦XYZ¦1¦\n¦<¦>¦="
    ),
    "pythonic": (
        "<|tool_call_start|>¦<|tool_call_end|>¦[¦]¦f(¦g(¦ZZ(¦a.b(¦()¦)¦, ¦X=¦Y=1¦Z='X'¦'¦\"¦'''¦\\¦[1, {'X': None}]¦{¦"
        '}¦YZ¦-1.5¦\n¦ ¦<|tool¦_call_start|>¦<¦#¦{"name": "f", "arguments": '
    ),
}


def without(text: str, gaps: list[tuple[int, int]]) -> str:
    """A text that lacks some characters at some places."""
    for start, length in gaps:
        start %= len(text) + 1
        text = text[:start] + text[start + length :]
    return text


def near(form: str) -> st.SearchStrategy[tuple[str, str]]:
    """A format and a text of its calls, whole or in pieces, with gaps."""
    whole = st.builds(lambda write, found: write(found), st.sampled_from(WRITERS[form]), calls)
    parts = st.lists(st.sampled_from(PIECES[form].split("¦")) | whole, max_size=6).map("".join)
    gaps = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3)), max_size=2)
    return st.tuples(st.just(form), st.builds(without, parts, gaps))


@settings(deadline=None, max_examples=150)
@given(case=st.sampled_from(list(FORMATS)).flatmap(near), places=cuts)
def test_an_answer_cut_anywhere_is_the_same_and_its_deltas_add_up_to_it(
    case: tuple[str, str], places: list[int]
) -> None:
    form, text = case
    whole, streamed = read(form, text), reader(form)
    deltas = [delta for piece in split(text, places) for delta in streamed.feed(piece)] + streamed.finish()
    sum_of_deltas = Answer()
    for delta in deltas:
        sum_of_deltas.add(delta)
        assert getattr(delta, "text", "x")
    assert whole == streamed.answer == sum_of_deltas
    starts = [delta.index for delta in deltas if isinstance(delta, CallStart)]
    assert starts == [delta.index for delta in deltas if isinstance(delta, CallEnd)] == [*range(len(starts))]
    for call in whole.tool_calls:
        assert call.name in ("f", "g", "a.b")
        assert isinstance(json.loads(call.arguments), dict) if call.error is None else call.error
    said = whole.content + "".join(call.name + call.arguments for call in whole.tool_calls)
    assert Counter(re.findall("[XYZ]", said)) == Counter(re.findall("[XYZ]", text))
    if not whole.tool_calls:
        assert whole.content == text


@pytest.mark.parametrize(("form", "write"), [(form, write) for form in WRITERS for write in WRITERS[form]])
@settings(deadline=None, max_examples=40)
@given(found=calls, texts=st.tuples(around, around, around), count=st.integers(0, 3))
def test_calls_are_read_as_they_are_written(form: str, write: Any, found: Any, texts: Any, count: int) -> None:
    before, between, after = texts
    answer = read(form, before + write(found[:count]) + between + write(found[count:]) + after)
    assert [call.error for call in answer.tool_calls] == [None] * len(found)
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == found
    assert answer.content.replace("\n", "") == "".join(texts).replace("\n", "")


HERMES, XML, PYTHONIC, ENDS = *FORMATS, "the answer ends inside the call"
MALFORMED = [
    # format, text with « and » for its marks, content, name and arguments of its calls, words of the first error
    (HERMES, 'a«{"name": "f", "arguments": {"x": }}»b', "ab", [("f", '{"x": }}')], "'}'"),
    (HERMES, '«{"name": "f", "arguments": {"x": 1}, "y": 2}»', "", [("f", '{"x": 1}, "y": 2}')], "'y'"),
    (HERMES, '«{"name": "f", "argument": {}}»', "", [("f", ', "argument": {}}')], "'argument'"),
    (HERMES, '«{"name": "f", "arguments": [1]}»', "", [("f", ', "arguments": [1]}')], "an object"),
    (HERMES, '«{"name": "f", "arguments": "x"}»', "", [("f", ', "arguments": "x"}')], "no JSON object"),
    (HERMES, r'«{"name": "f", "arguments": "{\"x\": \"\ud800\"}"}»', "", [("f", r'{"x": "\ud800"}')], None),
    (HERMES, '«{"name": "f", "arguments": {"x": "a\nb"}}»', "", [("f", '{"x": "a\nb"}}')], "end of a string"),
    (HERMES, '«{"name": "f", "arguments": {"x": "a', "", [("f", '{"x": "a')], ENDS),
    (HERMES, '«{"name": "f", "arguments": {}', "", [("f", "{}")], ENDS),
    (HERMES, '«{"name": "f", "arguments": {}}</tool', "", [("f", "{}")], None),
    (HERMES, '«{"name": "f", "argum', "", [("f", ', "argum')], ENDS),
    (HERMES, '«{"name": "f', '«{"name": "f', [], None),
    (HERMES, '« { "name" : "f" , "arguments" : { "x" : [ 1 , 2 ] } } »', "", [("f", '{ "x" : [ 1 , 2 ] }')], None),
    (HERMES, '«{"name": "f"}»', "", [("f", "{}")], None),
    (HERMES, '«{"name": "f", "arguments": null}»', "", [("f", "{}")], None),
    (HERMES, "«{'name': 'f'}»", "«{'name': 'f'}»", [], None),
    (XML, "«<function=f>x</function>»b", "b", [("f", "x</function>")], "<parameter="),
    (XML, "«<function=><parameter=x>1»b", "«<function=><parameter=x>1»b", [], None),
    (
        XML,
        "«<function=f><parameter=>1</parameter></function>»b",
        "b",
        [("f", "<parameter=>1</parameter></function>")],
        "name",
    ),
    (XML, "«<function=f><parameter=x>1</parameter><parameter=x>", "", [("f", '{"x": "1"<parameter=x>')], "given twice"),
    (XML, "«<function=f>»b", "b", [("f", "")], "<parameter="),
    (XML, "«<function=f><parameter=x>1", "", [("f", "<parameter=x>1")], ENDS),
    (XML, "«<function=f></function>", "", [("f", "{}")], None),
    (XML, "«<function=f", "«<function=f", [], None),
    (PYTHONIC, "«[f(x=1, y=h(2)), g()]»b", "b", [("f", '{"x": 1, y=h(2)), g()]')], "no literal"),
    (PYTHONIC, "«[f(1)]»", "", [("f", "1)]")], "name=value"),
    (PYTHONIC, "«[f(x='it's')]»b", "b", [("f", "x='it's')]")], "end of a value"),
    (PYTHONIC, "«[f(x=1, x=2)]»", "", [("f", '{"x": 1, x=2)]')], "given twice"),
    (PYTHONIC, "«[f(x=1e999)]»", "", [("f", "x=1e999)]")], "no literal"),
    (PYTHONIC, "«[f(x={1, 2})]»", "", [("f", "x={1, 2})]")], "no literal"),
    (PYTHONIC, "«[f(x=1), g(y='", "", [("f", '{"x": 1}'), ("g", "y='")], None),
    (PYTHONIC, "«[f(x=1), g", ", g", [("f", '{"x": 1}')], None),
    (PYTHONIC, "«[f(x=1)]<|tool", "", [("f", '{"x": 1}')], None),
    (PYTHONIC, '«[{"name": "f"}, g()]»', "", [("f", "{}"), ("g", "{}")], None),
    (PYTHONIC, '«[{"name": "f", "x": 1}, g()]»', "", [("f", ', "x": 1}, g()]')], "'x'"),
    (PYTHONIC, "«[]»", "«[]»", [], None),
    # names that are not offered
    (HERMES, '«{"name": "h", "arguments": {}}»', '«{"name": "h", "arguments": {}}»', [], None),
    (PYTHONIC, "«[h(x='[f()]'), f(), h(), g()]»", "«[h(x='[f()]'), , h(), ", [("f", "{}"), ("g", "{}")], None),
    (
        XML,
        "«<function=h><parameter=x>«<function=f></parameter></function>»",
        "«<function=h><parameter=x>«<function=f></parameter></function>»",
        [],
        None,
    ),
]


def marked(form: str, text: str) -> str:
    return text.replace("«", FORMATS[form].begin).replace("»", FORMATS[form].end)


@pytest.mark.parametrize(("form", "text", "content", "expected", "words"), MALFORMED, ids=[row[1] for row in MALFORMED])
def test_what_is_no_call_is_content_and_a_malformed_call_keeps_all_up_to_its_end(
    form: str, text: str, content: str, expected: Any, words: str | None
) -> None:
    answer, streamed = read(form, marked(form, text)), reader(form)
    for char in marked(form, text):
        streamed.feed(char)
    streamed.finish()
    assert streamed.answer == answer
    assert answer.content == marked(form, content)
    assert [(call.name, call.arguments) for call in answer.tool_calls] == expected
    if words is not None:
        assert words in str(answer.tool_calls[0].error)
    elif answer.tool_calls:
        assert answer.tool_calls[0].error is None


def test_any_name_may_be_called_where_no_tools_are_given_and_none_where_there_are_none() -> None:
    text = '<tool_call>{"name": "h", "arguments": {}}</tool_call>'
    assert read("hermes", text, None).tool_calls == [ToolCall("h", "{}")]
    assert read("hermes", text, []) == Answer(text)
    nameless = text.replace("h", "")
    assert read("hermes", nameless, None) == Answer(nameless)
    nameless = "<|tool_call_start|>[()]<|tool_call_end|>"
    assert read("pythonic", nameless, None) == Answer(nameless)


def test_json_arguments_stream_as_they_grow_and_pythonic_ones_one_by_one() -> None:
    hermes, pythonic = reader("hermes"), reader("pythonic")
    assert hermes.feed('<tool_call>{"name": "f') == []
    assert hermes.feed('", "arg') == [CallStart(0, "f")]
    assert hermes.feed('uments": {"x": "ab') == [ArgumentsDelta(0, '{"x": "ab')]
    assert hermes.feed("c\\ud83d") == [ArgumentsDelta(0, "c\\ud83d")]
    assert hermes.feed('\\udc4b"}') == [ArgumentsDelta(0, '\\udc4b"}')]
    assert hermes.feed("}</tool_call") == []
    assert hermes.feed("> ok <") == [CallEnd(0), ContentDelta(" ok ")]
    assert pythonic.feed("a <|tool_call_start|>[f") == [ContentDelta("a ")]
    assert pythonic.feed("(x=1") == [CallStart(0, "f")]
    assert pythonic.feed("2, y='") == [ArgumentsDelta(0, '{"x": 12')]
    assert pythonic.feed("b') , g(") == [
        ArgumentsDelta(0, ', "y": "b"'),
        ArgumentsDelta(0, "}"),
        CallEnd(0),
        CallStart(1, "g"),
    ]
    assert pythonic.feed(")]<|tool_call_end|>") == [ArgumentsDelta(1, "{}"), CallEnd(1)]


def test_a_call_inside_the_reasoning_is_reasoning() -> None:
    call = '<tool_call>{"name": "f"}</tool_call>'
    assert read("hermes", f"<think>{call}</think>{call}") == Answer("", call, [ToolCall("f", "{}")])
    assert read("hermes", f"{call}</think>yes", prompt="<|im_start|>assistant\n<think>\n") == Answer("yes", call)
    assert read("hermes", f"{call}<think>yes") == Answer("<think>yes", "", [ToolCall("f", "{}")])


SCHEMA = {
    "properties": {
        "n": {"type": "integer"},
        "t": {"type": "string"},
        "o": {"anyOf": [{"$ref": "#/$defs/o"}, {"type": "null"}]},
        "l": {"type": ["array", "string"]},
        "b": {"enum": [True, False]},
        "x": {"$ref": "#"},
    },
    "$defs": {"o": {"type": "object", "properties": {"o": {"$ref": "#/$defs/o"}}}},
    "anyOf": [{"$ref": "#"}],
}


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        *(
            ("n", "5", 5),
            ("n", "5.0", 5),
            ("n", "\n5\n", 5),
            ("n", "5.5", "5.5"),
            ("n", "true", "true"),
            ("n", "1e999", "1e999"),
        ),
        *(("t", "5", "5"), ("t", "\n a \n\n", " a \n"), ("t", "null", "null"), ("t", "", "")),
        *(("o", '{"a": [1]}', {"a": [1]}), ("o", "None", None), ("o", "[]", "[]"), ("o", "{", "{")),
        *(("l", "[1, true]", [1, True]), ("l", "NaN", "NaN"), ("l", "[NaN]", "[NaN]"), ("l", "1", "1")),
        *(("b", "True", True), ("b", "false", False), ("b", "1", "1"), ("x", "1", "1"), ("y", "1", "1")),
    ],
)
def test_values_without_a_type_get_that_of_the_schema(name: str, written: str, value: Any) -> None:
    tools = [{"name": "f", "parameters": SCHEMA}]
    text = f"<tool_call><function=f><parameter={name}>{written}</parameter></function></tool_call>"
    (call,) = read("qwen3_coder", text, tools).tool_calls
    assert json.loads(call.arguments) == {name: value}
    assert type(json.loads(call.arguments)[name]) is type(value)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("'a\nb'", "a\nb"),
        ("'a\rb'", "a\rb"),
        ('''"""a "b"\nc"""''', 'a "b"\nc'),
        (r"'\d\n\x41\u00e9'", "\\d\nAé"),
        (r"'\ud83d\udc4b'", "👋"),
        ("'a' \"b\"", "ab"),
        ("r'\\n'", "\\n"),
        ("(1, 2)", [1, 2]),
        ("{'a': {'b': [None, True, false, null]}}", {"a": {"b": [None, True, False, None]}}),
        ("{1: 2}", {"1": 2}),
        ("-0x10", -16),
        ("1_000", 1000),
    ],
)
def test_pythonic_values_are_literals(source: str, value: Any) -> None:
    (call,) = read("pythonic", f"<|tool_call_start|>[f(x={source})]<|tool_call_end|>").tool_calls
    assert (json.loads(call.arguments), call.error) == ({"x": value}, None)


@pytest.mark.parametrize(
    "source",
    [
        *"__import__('os') x ... -True 1j {**{}} [*[]] ( 'a'.b".split(),
        "",
        "f'{1}'",
        "b'a'",
        "1 + 1",
        "lambda: 1",
        "0x" + "f" * 9999,
        "9" * 9999,
        "[" * 500,
        "-" * 9999 + "1",
        "a if b else c",
        "'\\N{nope}'",
        "\0",
    ],
    ids=lambda source: source[:12],
)
def test_what_is_no_literal_is_malformed_and_never_evaluated(source: str) -> None:
    (call,) = read("pythonic", f"<|tool_call_start|>[f(x={source})]<|tool_call_end|>").tool_calls
    assert call.error
    assert call.arguments == f"x={source})]"


near_json = st.lists(
    st.sampled_from(
        [*'{}[],:" \n\t\\.-+eE01', "true", "nul", '"a"', "\\u00", "\x01", "é", "NaN", "1.5e3", '{"a": ', "[1, "]
    ),
    max_size=8,
).map("".join)


@settings(deadline=None, max_examples=150)
@given(text=near_json | st.recursive(st.none() | words, st.lists, max_leaves=4).map(json.dumps))
def test_a_value_is_json_by_the_letter(text: str) -> None:
    from afmoe_mlx.messages import hermes

    def refuse(word: str) -> None:
        raise ValueError(word)

    incoming = Incoming()
    incoming.text, incoming.is_ended = text.strip(" \n\t"), True
    try:
        for _ in hermes.value(incoming):
            raise AssertionError("it waits for more")
        accepted = incoming.at == len(incoming.text)
    except MalformedError:
        accepted = False
    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        assert not accepted
    else:
        assert accepted
