"""Calls in Python's manner, a list of them: `<|tool_call_start|>[f(a='b'), g()]<|tool_call_end|>`.

Values are read by `ast` as literals, and never evaluated. A call may be an object, too, as in the Hermes manner: LFM2
writes those where its system prompt asks for JSON.
"""

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

from .calls import Calls, Written, json_text
from .hermes import read_object
from .incoming import Incoming, MalformedError, Waiting

BEGIN, END = "<|tool_call_start|>", "<|tool_call_end|>"

_NAME = re.compile(r"[\w.:/-]*")
_PLAIN = re.compile(r"[^'\"()\[\]{},<#]*")
_IN_STRING = re.compile(r"[^'\"\\]*")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
DEEPEST = 100
"""Brackets within one another that are read; Python's parser takes twice as many."""
_STRING = re.compile(r"('''|\"\"\"|'|\")((?:\\.|(?!\1)[^\\])*)\1", re.DOTALL)
_BREAK = re.compile(r"\\.|[\r\n]", re.DOTALL)
_BREAKS = {"\r": "\\r", "\n": "\\n"}
_JSON = {"true": True, "false": False, "null": None}


def read(text: Incoming, calls: Calls) -> Waiting[None]:
    """Read what follows the opening mark, through the closing one; MalformedError where it is not as it should be."""
    yield from text.spaces()
    yield from text.expect("[")
    yield from text.spaces()
    while True:
        calls.mark()
        if (yield from text.follows("{")):
            yield from read_object(text, calls)
        else:
            yield from _call(text, calls)
        calls.end()
        yield from text.spaces()
        if not (yield from text.skip(",")):
            break
        yield from text.spaces()
        if (yield from text.follows("]")):
            break
    yield from text.expect_last("]")
    yield from text.spaces()
    yield from text.expect_last(END)


def write(calls: Sequence[Written]) -> str:
    """The text of calls, "" for none."""
    written = ", ".join(
        f"{name}({arguments if isinstance(arguments, str) else ', '.join(map(_argument, arguments.items()))})"
        for name, arguments in calls
    )
    return f"{BEGIN}[{written}]{END}" if calls else ""


def _argument(item: tuple[str, Any]) -> str:
    return f"{item[0]}={item[1]!r}"


def _call(text: Incoming, calls: Calls) -> Waiting[None]:
    name = yield from text.run(_NAME)
    if not name:
        raise text.unexpected("a name")
    yield from text.spaces()
    yield from text.expect("(")
    calls.begin(name)
    yield from _arguments(text, calls)


def _arguments(text: Incoming, calls: Calls) -> Waiting[None]:
    yield from text.spaces()
    while not (yield from text.skip(")")):
        name = yield from text.run(_NAME)
        yield from text.spaces()
        if not name or not (yield from text.skip("=")):
            raise text.unexpected("name=value")
        if calls.has(name):
            raise MalformedError(f"{name!r} is given twice")
        calls.argument(name, literal((yield from _value(text))))
        yield from text.spaces()
        if (yield from text.skip(",")):
            yield from text.spaces()
    calls.close()


def _value(text: Incoming) -> Waiting[str]:
    """Read up to the comma or bracket that ends a value: its text."""
    pieces, closing = [], ""  # the brackets that are to come, the last one first to come
    while True:
        pieces.append((yield from text.run(_PLAIN)))
        char = yield from text.peek()
        if char and char in ",)" and not closing:
            return "".join(pieces)
        if char and char in "'\"":
            pieces.append((yield from _string(text, char)))
            continue
        if char and char in _CLOSING and len(closing) < DEEPEST:
            closing += _CLOSING[char]
        elif char and closing.endswith(char):
            closing = closing[:-1]
        elif char != ",":
            raise text.unexpected("a value")
        pieces.append((yield from text.take(1)))


def _string(text: Incoming, quote: str) -> Waiting[str]:
    """Read over a string and the white space after it: as they were written.

    MalformedError if what comes then ends no value: the quote was one inside the string, and all else would be misread.
    """
    quotes = quote * 3 if (yield from text.follows(quote * 3)) else quote
    yield from text.expect(quotes)
    pieces = [quotes]
    while not (yield from text.skip(quotes)):
        pieces.append((yield from text.run(_IN_STRING)))
        if not (yield from text.follows(quotes)):
            pieces.append((yield from text.take(2 if (yield from text.follows("\\")) else 1)))
    pieces.append(quotes + (yield from text.spaces()))
    after = yield from text.peek()
    if not after or after not in ",)]}:'\"":
        raise text.unexpected("the end of a value")
    return "".join(pieces)


def literal(source: str) -> str:
    """As JSON, the value that a Python literal writes, or JSON's own true, false and null.

    Line breaks may stand in any string as they are. MalformedError if it is no literal, or JSON has no such value.
    """
    source = _STRING.sub(_without_breaks, source) if "\n" in source or "\r" in source else source
    if not source.strip():
        raise MalformedError("an argument has no value")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python has not
            tree = ast.parse(f"({source})", mode="eval")
        return json_text(_value_of(tree.body))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise MalformedError(f"an argument's value is no literal: {source.strip()[:40]!r}") from None


def _without_breaks(string: re.Match[str]) -> str:
    return string[1] + _BREAK.sub(lambda found: _BREAKS.get(found[0], found[0]), string[2]) + string[1]


def _value_of(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):  # bool is an int
            return value
        case ast.Name(id="true" | "false" | "null" as name):
            return _JSON[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value_of(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {_value_of(key): _value_of(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if (
            type(value) is not bool
        ):
            return -value
    raise ValueError("no literal")
