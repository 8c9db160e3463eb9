"""Calls in the Hermes manner, one JSON object each: `<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>`."""

import json
import re
from collections.abc import Sequence

from .calls import Calls, Written, json_text
from .incoming import Incoming, MalformedError, Waiting

BEGIN, END = "<tool_call>", "</tool_call>"

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_WORD = re.compile(r"[a-z]*")
_DIGITS = re.compile(r"[-+.eE0-9]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_HEX = "0123456789abcdefABCDEF"
DEEPEST = 100
"""Arrays and objects within one another that are read; Python's own reader gives up at about ten times as many."""


def read(text: Incoming, calls: Calls) -> Waiting[None]:
    """Read what follows the opening mark, through the closing one; MalformedError where it is not as it should be."""
    yield from text.spaces()
    yield from read_object(text, calls)
    yield from text.spaces()
    yield from text.expect_last(END)
    calls.end()


def read_object(text: Incoming, calls: Calls) -> Waiting[None]:
    """Read the object that is a call, but for ending the call.

    The keys may come in either order; what comes of the arguments streams as it is once the name is known.
    """
    name = arguments = None
    yield from text.expect("{")
    more = True
    while more:
        key = yield from _key(text)
        if key == "name" and name is None:
            name = yield from string(text)
            if not name:
                raise MalformedError("the name is empty")
            calls.begin(name)
            calls.arguments(arguments or "")
        elif key == "arguments" and arguments is None:
            arguments = yield from _arguments(text, calls, is_named=name is not None)
            if name is not None:
                calls.arguments(arguments)
        else:
            raise MalformedError(f'expected "name" and "arguments", found {key!r}')
        yield from text.spaces()
        more = yield from text.skip(",")
    yield from text.expect("}")
    if name is None:
        raise MalformedError("the call has no name")
    if arguments is None:
        calls.arguments("{}")


def write(calls: Sequence[Written]) -> str:
    """The text of calls, as chat templates write it."""
    return "\n".join(
        f'{BEGIN}\n{{"name": {json_text(name)}, "arguments": '
        f"{arguments if isinstance(arguments, str) else json_text(arguments)}}}\n{END}"
        for name, arguments in calls
    )


def _key(text: Incoming) -> Waiting[str]:
    yield from text.spaces()
    key = yield from string(text)
    yield from text.spaces()
    yield from text.expect(":")
    yield from text.spaces()
    return key


def _arguments(text: Incoming, calls: Calls, *, is_named: bool) -> Waiting[str]:
    """Read over the arguments: an object, or one as a string, or null. Their text; "" if it has streamed already."""
    whole, first = "{}", (yield from text.peek())
    if first == "{" and is_named:
        calls.stream()
        yield from value(text)
        calls.hold()
        return ""
    if first == "{":
        start = text.at
        yield from value(text)
        return text.text[start : text.at]  # nothing is claimed before the name
    if first == '"':
        whole = _object_in((yield from string(text)))
    elif not (yield from text.skip("null")):
        raise text.unexpected("an object")
    return whole


def _object_in(text: str) -> str:
    """The JSON object that a string holds."""
    try:
        if isinstance(value := json.loads(text, parse_constant=_refuse), dict):
            return json_text(value)
    except (ValueError, RecursionError):
        pass
    raise MalformedError("the arguments are a string that holds no JSON object")


def _refuse(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity are Python's own


def value(text: Incoming, depth: int = 0) -> Waiting[None]:
    """Read over a JSON value, by the letter of RFC 8259."""
    first = yield from text.peek()
    if first == '"':
        yield from string(text)
    elif first and first in "{[":
        if depth == DEEPEST:
            raise MalformedError(f"more than {DEEPEST} arrays and objects within one another")
        yield from _container(text, depth + 1, is_object=first == "{")
    elif first and first in "-0123456789":
        if not _NUMBER.fullmatch((yield from text.run(_DIGITS))):
            raise MalformedError("expected a number as JSON has it")
    elif first.isalpha():
        if (word := (yield from text.run(_WORD))) not in ("true", "false", "null"):
            raise MalformedError(f"expected a JSON value, found {word!r}")
    else:
        raise text.unexpected("a JSON value")


def _container(text: Incoming, depth: int, *, is_object: bool) -> Waiting[None]:
    text.at += 1
    end = "}" if is_object else "]"
    yield from text.spaces()
    if (yield from text.skip(end)):
        return
    while True:
        yield from text.spaces()
        if is_object:
            yield from _key(text)
        yield from value(text, depth)
        yield from text.spaces()
        if (yield from text.skip(end)):
            return
        if not (yield from text.skip(",")):
            raise text.unexpected(f"',' or {end!r}")


def string(text: Incoming) -> Waiting[str]:
    """Read over a JSON string: what it says."""
    pieces = ['"']
    yield from text.expect('"')
    while True:
        pieces.append((yield from text.run(_PLAIN)))
        char = yield from text.peek()
        if char == '"':
            text.at += 1
            return str(json.loads("".join(pieces) + '"'))
        if char != "\\":
            raise text.unexpected("the end of a string")
        text.at += 1
        pieces.append(char + (yield from _escape(text)))


def _escape(text: Incoming) -> Waiting[str]:
    escape = yield from text.peek()
    if not escape or escape not in '"\\/bfnrtu':
        raise text.unexpected("an escape that JSON has")
    text.at += 1
    for _ in range(4 if escape == "u" else 0):
        digit = yield from text.peek()
        if not digit or digit not in _HEX:
            raise text.unexpected("four hexadecimal digits")
        text.at += 1
        escape += digit
    return escape
