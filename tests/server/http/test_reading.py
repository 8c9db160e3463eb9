"""A request's body: whatever bytes come, an object or a 400; and the field that is wrong is named."""

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.errors import InputError
from afmoe_mlx.server.endpoint import Body
from afmoe_mlx.server.errors import RequestError, failure
from afmoe_mlx.server.fields import Fields
from afmoe_mlx.server.http.reading import check, parse
from afmoe_mlx.server.openai.chat_body import ChatBody
from afmoe_mlx.server.openai.completions import CompletionBody

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.booleans())
def test_any_json_object_is_read_as_python_reads_it(value: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse(text) == value


@settings(max_examples=40)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_other_bytes_are_refused(text: bytes) -> None:
    if (expected := loaded(text)) is not None:
        assert parse(text) == expected
        return
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message


def loaded(text: bytes) -> dict[str, Any] | None:
    """The object that Python's parser finds, if it finds one."""
    try:
        found = json.loads(text.decode())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": [{"b": 1e+400}]}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"a": ' + b"9" * 100_000 + b"}",
        '{"a": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b'{"a": [' + b"{}," * 300_000 + b"{}]}",
        b'{"a": [' + b"1," * 300_000 + b"1]}",
        json.dumps({"a": {str(i): i for i in range(20_000)}}).encode(),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_only_some_parsers_take_is_refused(text: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    assert len(caught.value.message) < 200


def test_an_exponent_in_a_text_is_no_number() -> None:
    assert parse(b'{"a": "1e999", "b": 1e5}') == {"a": "1e999", "b": 1e5}
    assert math.isfinite(parse(b'{"a": 1e300}')["a"])


class Image(Body):
    url: str


class Message(Body):
    role: str
    content: str | list[Image]


class Request(Body):
    HINTS: ClassVar[Mapping[str, str]] = {"user": "nobody asks"}
    messages: list[Message]
    limit: int | None = None


SAID = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, "messages"),
        ({"messages": 1}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [*SAID["messages"], {"role": 1, "content": ""}]}, "messages.1.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"url": "a"}, {"link": "b"}]}]}, "messages.0.content.1.url"),
        (SAID | {"limit": "many"}, "limit"),
        (SAID | {"limit": 1.5}, "limit"),
    ],
)
def test_the_field_that_is_wrong_is_named_by_its_place(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(Request, fields, ignore_unknown=False)
    assert (caught.value.status, caught.value.param) == (400, place)
    assert caught.value.message.startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("form", "fields", "words"),
    [
        (ChatBody, {"messages": [{"role": "user", "content": "a"}], "stop": ""}, "stop: String should have at least 1"),
        (CompletionBody, {"prompt": []}, "prompt: List should have at least 1 item"),
        (CompletionBody, {"prompt": [[]]}, "prompt.0: List should have at least 1 item"),
    ],
    ids=str,
)
def test_of_several_forms_the_one_of_the_right_type_is_told_of(
    form: type[Body], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        check(form, fields, ignore_unknown=False)
    assert caught.value.message.startswith(words)


def test_no_refusal_of_a_request_is_without_a_code() -> None:
    assert (RequestError(400, "").code, RequestError(400, "", code="a").code) == ("invalid_value", "a")
    assert failure(InputError("")).code == "invalid_value"
    assert RequestError(404, "").code is None


def test_an_unknown_field_within_another_is_refused_by_its_place_unless_it_may_pass() -> None:
    class Closed(Fields):
        known: int

    class Holder(Body):
        inner: list[Closed]

    fields = {"inner": [{"known": 1}, {"known": 2, "odd": 3}]}
    assert check(Holder, fields, ignore_unknown=True).inner[1].known == 2
    with pytest.raises(RequestError, match=r"unknown field: inner\.1\.odd") as caught:
        check(Holder, fields, ignore_unknown=False)
    assert (caught.value.code, caught.value.param) == ("unknown_field", "inner.1.odd")


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=8), st.none(), max_size=3))
def test_an_unknown_field_is_refused_by_name_unless_it_may_pass(more: dict[str, None]) -> None:
    fields = {**more, **SAID, "user": "me"}
    unknown = more.keys() - {"messages", "limit", "user"}
    assert check(Request, fields, ignore_unknown=True).messages[0].content == "x"
    if not unknown:
        assert check(Request, fields, ignore_unknown=False).messages[0].content == "x"
        return
    with pytest.raises(RequestError) as caught:
        check(Request, fields, ignore_unknown=False)
    assert caught.value.param == min(unknown)
