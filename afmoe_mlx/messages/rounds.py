"""Rounds of a conversation: an answer with calls of tools, then their results, as messages in OpenAI's form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from ..tokenizer import Tokenizer
from .answers import read_answer
from .prompts import Message
from .reasoning import split_thinking

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


def calls_in(
    text: str, opened: str, before: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]]
) -> Message:
    """What the message of an answer with calls has, nothing for any other: its content, its calls, what was written.

    text: all that the model wrote; opened: what of the answer the template wrote; before: the messages it answers.
    """
    found = read_answer(text, tokenizer, tools, opened)
    if not found.tool_calls:
        return {}
    written = opened + text
    reasoning = written.removesuffix(split_thinking(written)[1])
    taken = {call.id for message in before for call in calls_of(message)}
    ids = (name for number in count(1) if (name := f"call_{number}") not in taken)
    calls = [
        {"id": next(ids), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        | ({} if call.error is None else {"error": call.error})
        for call in found.tool_calls
    ]
    return {"content": reasoning + found.content, "tool_calls": calls, "written": written}


def readable(message: Message, tokenizer: Tokenizer) -> Message:
    """A message without what was written with its calls, if this model writes calls in another way."""
    if "written" in message:
        names = [call.name for call in calls_of(message)]
        offered = [{"function": {"name": name}} for name in dict.fromkeys(names)]
        if [call.name for call in read_answer(message["written"], tokenizer, offered).tool_calls] != names:
            return {key: value for key, value in message.items() if key != "written"}
    return dict(message)


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
