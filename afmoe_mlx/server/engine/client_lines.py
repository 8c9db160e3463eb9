"""Lines that known clients put into their prompts and change from request to request or from session to session.

They are for the client's own maker, tell a model nothing, and stand at the beginning: left in, no prompt would begin as
the one before it, and all of it would be read again. They are left out of system messages, wherever they come from.

| client | line | changes |
|---|---|---|
| claude-code | `x-anthropic-billing-header: cc_version=…; cc_entrypoint=…; cch=…;` | from session to session |
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

CLIENT_LINES = {
    "claude-code": re.compile(r"^x-anthropic-billing-header:.*\n*", re.MULTILINE),
}
"""By client, what matches such a line."""

_SYSTEM = ("system", "developer")


def without_client_lines(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages in OpenAI's form without those lines; without a system message that has nothing else."""
    kept = (_without(message) if message.get("role") in _SYSTEM else message for message in messages)
    return [message for message in kept if message is not None]


def _without(message: Mapping[str, Any]) -> Mapping[str, Any] | None:
    content = message.get("content")
    if isinstance(content, str):
        left: Any = _left_of(content)
    elif isinstance(content, list | tuple):
        left = [part for part in map(_part, content) if part is not None]
    else:
        return message
    if left == content:
        return message
    return {**message, "content": left} if left else None


def _part(part: Any) -> Any:
    """A part of a content without such lines, None if there is nothing else in it."""
    if not isinstance(part, Mapping) or not isinstance(text := part.get("text"), str):
        return part
    left = _left_of(text)
    return part if left == text else {**part, "text": left} if left else None


def _left_of(text: str) -> str:
    for line in CLIENT_LINES.values():
        text = line.sub("", text)
    return text
