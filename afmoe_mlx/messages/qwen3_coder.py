"""Calls in Qwen3-Coder's manner: `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`.

Values are text without a type of its own: the tool's schema says what it stands for.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .calls import Calls, Written, json_text
from .incoming import Incoming, MalformedError, Waiting

BEGIN, END = "<tool_call>", "</tool_call>"

_NAME = re.compile(r"[^<>\s]*")
_PYTHON = {"True": "true", "False": "false", "None": "null"}  # what Jinja makes of JSON's words


def read(text: Incoming, calls: Calls) -> Waiting[None]:
    """Read what follows the opening mark, through the closing one; MalformedError where it is not as it should be."""
    yield from text.spaces()
    yield from text.expect("<function=")
    function = yield from _name(text)
    calls.begin(function)
    properties = calls.schema(function).get("properties", {})
    yield from text.spaces()
    while not (yield from text.skip("</function>")):
        yield from text.expect("<parameter=")
        name = yield from _name(text)
        if calls.has(name):
            raise MalformedError(f"{name!r} is given twice")
        value = yield from text.until("</parameter>")
        calls.argument(name, converted(value.removeprefix("\n").removesuffix("\n"), properties.get(name, {})))
        yield from text.spaces()
    yield from text.spaces()
    yield from text.expect_last(END)
    calls.close()
    calls.end()


def write(calls: Sequence[Written]) -> str:
    """The text of calls, as chat templates write it."""
    return "\n".join(
        f"{BEGIN}\n<function={name}>\n"
        + (arguments + "\n" if isinstance(arguments, str) else "".join(_parameter(*item) for item in arguments.items()))
        + f"</function>\n{END}"
        for name, arguments in calls
    )


def _parameter(name: str, value: Any) -> str:
    return f"<parameter={name}>\n{value if isinstance(value, str) else json_text(value)}\n</parameter>\n"


def _name(text: Incoming) -> Waiting[str]:
    name = yield from text.run(_NAME)
    if not name:
        raise text.unexpected("a name")
    yield from text.expect(">")
    return name


def converted(value: str, schema: Any) -> str:
    """As JSON, a value as what a schema allows it to be: of another type than string if it can be, else a string."""
    types = set(_types(schema)) - {"string"}
    read = _read(value) if types else value
    if not any(_is(read, name) for name in types):
        return json_text(value)
    whole = isinstance(read, float) and "number" not in types
    return json_text(int(read) if whole else read)


def _read(value: str) -> Any:
    """What a text says in JSON, or in the words that Python has for it; the text itself if it says nothing."""
    try:
        read = json.loads(_PYTHON.get(value.strip(), value))
        json_text(read)
    except (ValueError, RecursionError):
        return value
    return read


def _types(schema: Any, depth: int = 0) -> Iterator[str]:
    """The types that a schema allows, in its order."""
    if not isinstance(schema, Mapping) or depth > 8:
        return
    named = schema.get("type")
    yield from [named] if isinstance(named, str) else [name for name in named or () if isinstance(name, str)]
    for key in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(key) or ():
            yield from _types(one, depth + 1)
    for one in schema.get("enum") or ():
        yield next(name for name in _TYPES if _is(one, name))


_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int, float),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
    "string": (str,),
}


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    if isinstance(value, float) and name == "integer":
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, ()))
