"""Calls in Qwen3-Coder's manner: `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`.

Values are text without a type of its own: the tool's schema says what it stands for.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from .calls import Calls, Written, json_text
from .incoming import Incoming, MalformedError, Waiting
from .tools import argument_types, is_any

BEGIN, END = "<tool_call>", "</tool_call>"

_NAME = re.compile(r"[^<>\s]*")
_PYTHON = {"True": "true", "False": "false", "None": "null"}  # what Jinja makes of JSON's words


def read(text: Incoming, calls: Calls) -> Waiting[None]:
    """Read what follows the opening mark, through the closing one; MalformedError where it is not as it should be."""
    yield from text.spaces()
    yield from text.expect("<function=")
    function = yield from _name(text)
    calls.begin(function)
    yield from text.spaces()
    while not (yield from text.skip("</function>")):
        yield from text.expect("<parameter=")
        name = yield from _name(text)
        if calls.has(name):
            raise MalformedError(f"{name!r} is given twice")
        value = yield from text.until("</parameter>")
        types = argument_types(calls.schema(function), name)
        calls.argument(name, converted(value.removeprefix("\n").removesuffix("\n"), types))
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


def converted(value: str, types: set[str]) -> str:
    """As JSON, a value of one of these types: of another than string if it can be, else a string."""
    read = _read(value) if types - {"string"} else value
    if not is_any(read, types - {"string"}):
        return json_text(value)
    return json_text(int(read) if isinstance(read, float) and "number" not in types else read)


def _read(value: str) -> Any:
    """What a text says in JSON, or in the words that Python has for it; the text itself if it says nothing."""
    try:
        read = json.loads(_PYTHON.get(value.strip(), value))
        json_text(read)
    except (ValueError, RecursionError):
        return value
    return read
