"""Rounds of a conversation: an answer with calls of tools, then their results, as messages in OpenAI's form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .answers import ToolCall
from .prompts import Message

NOT_MADE = "error: this call was not made"


@dataclass(frozen=True)
class Call:
    """A call in an answer. arguments: JSON, or what was written in its place; error: why it is malformed, or None."""

    id: str
    name: str
    arguments: str
    error: str | None = None


def is_call(value: Any) -> bool:
    """Whether it is a call as a message holds it."""
    match value:
        case {"id": str(), "function": {"name": str(), "arguments": str()}}:
            return isinstance(value.get("error"), str | None)
    return False


def calls_of(message: Mapping[str, Any]) -> list[Call]:
    """The calls of an answer."""
    return [
        Call(call["id"], call["function"]["name"], call["function"]["arguments"], call.get("error"))
        for call in message.get("tool_calls") or ()
    ]


def as_messages_hold_them(calls: Sequence[ToolCall], messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Calls of the answer that comes after `messages`, with ids that no other call there has."""
    before = sum(len(message.get("tool_calls") or ()) for message in messages)
    return [
        {"id": f"call_{number}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        | ({} if call.error is None else {"error": call.error})
        for number, call in enumerate(calls, before + 1)
    ]


def result_of(call: Call, text: str) -> Message:
    """The message that gives a call its result."""
    return {"role": "tool", "content": text, "tool_call_id": call.id, "name": call.name}


def open_calls(messages: Sequence[Message]) -> list[Call]:
    """The calls of the last answer that have no result yet, if nothing but results comes after it."""
    answered: list[str | None] = []
    for message in reversed(messages):
        if message["role"] != "tool":
            return [call for call in calls_of(message) if call.id not in answered]
        answered.append(message.get("tool_call_id"))
    return []


def closed(messages: Sequence[Message]) -> list[Message]:
    """The messages with a result for each call that has none: no template is to guess what came of it."""
    return [*messages, *(result_of(call, NOT_MADE) for call in open_calls(messages))]
