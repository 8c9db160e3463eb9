"""Turns in a list of messages: one of the user, its answers, and what tools have given in between."""

from collections.abc import Sequence
from typing import Any

from afmoe_mlx.messages.prompts import Message
from afmoe_mlx.messages.rounds import closed


def system_of(messages: Sequence[Message]) -> list[Message]:
    """The system message, if there is one."""
    return [message for message in messages[:1] if message["role"] == "system"]


def turn_starts(messages: Sequence[Message]) -> list[int]:
    """Where the messages of the user are."""
    return [i for i, message in enumerate(messages) if message["role"] == "user"]


def last_content(messages: Sequence[Message], role: str) -> Any:
    """The content of the last message of a role; None if there is none."""
    return next((message["content"] for message in reversed(messages) if message["role"] == role), None)


def with_user(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages with one more of the user's; a call that has no result is given one that says so."""
    before = closed(messages)
    if before and before[-1]["role"] == "user":  # most templates refuse two in a row
        text = f"{before.pop()['content']}\n\n{text}"
    return [*before, {"role": "user", "content": text}]
