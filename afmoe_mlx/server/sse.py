"""Server-sent events as text: an event, its JSON, and the comment that is a sign of life and nothing else."""

import json
from collections.abc import AsyncGenerator
from typing import Any

ALIVE = ": alive\n\n"
"""A comment: clients skip it, and know that the server lives."""

# Line ends for Python's splitlines, by which some clients read lines, that JSON leaves as they are.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def event(data: Any, name: str | None = None) -> str:
    """An event whose data is a value's JSON, or a text such as "[DONE]" as it is; name: of its `event:` line."""
    text = data if isinstance(data, str) else compact_json(data)
    return f"data: {text}\n\n" if name is None else f"event: {name}\ndata: {text}\n\n"


def compact_json(value: Any) -> str:
    """A value as JSON on one line, whatever the client takes for a line's end. ValueError for what JSON has not."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of characters, which no UTF-8 takes
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS)


async def begun(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The same events, of which the first is made already.

    So what they hold is let go of even if nobody comes to read them: a generator that was not begun has no end, either.
    """
    first = await anext(events)

    async def all_of_them() -> AsyncGenerator[str, None]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    return all_of_them()
