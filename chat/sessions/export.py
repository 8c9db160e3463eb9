"""Exporting a conversation to Markdown or JSON."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afmoe_mlx.errors import InputError
from afmoe_mlx.messages.prompts import Message, ending
from afmoe_mlx.messages.reasoning import split_thinking
from afmoe_mlx.messages.rounds import calls_of
from afmoe_mlx.terminal import printable

from ..paths import beside
from .attachments import fenced
from .log import dump_json, plain_settings

TITLES = {"system": "System prompt", "user": "User", "assistant": "Assistant"}


def export_conversation(
    path: str | Path,
    messages: Sequence[Message],
    *,
    model: str,
    settings: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a conversation to a file that ends in .md or .json, whole or not at all; its path, `~` resolved.

    settings: options of the answers; what JSON cannot hold is left out. InputError for another ending, a conversation
    that is empty, a file that is there already unless it is to be overwritten, and one that cannot be written.
    """
    found = Path(os.path.expanduser(path))
    shown = printable(str(found))
    write = {".md": as_markdown, ".json": as_json}.get(found.suffix.lower())
    if write is None:
        raise InputError(f"{shown} ends in {printable(found.suffix) or 'nothing'}: expected .md or .json")
    if not messages:
        raise InputError("the conversation is empty: there is nothing to write")
    if os.path.isdir(found) or not os.path.isdir(found.parent):
        trouble = "it is a folder" if os.path.isdir(found) else "its folder is not there"
        raise InputError(f"{shown}: {trouble}: expected the path of a file to write")
    if os.path.lexists(found) and not overwrite:
        raise InputError(f"{shown} is there already: give another name")
    content = write(messages, model=model, settings=plain_settings(settings)).encode("utf-8", "replace")
    try:
        with beside(found) as descriptor, open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except (OSError, ValueError) as error:
        raise InputError(f"{shown}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    return found


def as_json(messages: Sequence[Message], *, model: str, settings: Mapping[str, Any]) -> str:
    """The messages, in OpenAI's form, and what they were made with: {"model", "settings", "messages"}."""
    plain = [{name: value for name, value in message.items() if name != "written"} for message in messages]
    return dump_json({"model": model, "settings": dict(settings), "messages": plain}, indent=2) + "\n"


def as_markdown(messages: Sequence[Message], *, model: str, settings: Mapping[str, Any]) -> str:
    """A heading for each message; reasoning is folded, and control characters are shown instead of kept.

    Calls of tools and their results are blocks of code.
    """
    made_with = ", ".join(f"{name} {value}" for name, value in settings.items())
    parts = [f"# Chat with {model}"]
    if made_with:
        parts.append(made_with)
    for message in messages:
        parts += [f"## {_title(message)}", _content(message)]
    return printable("\n\n".join(part.strip("\n") for part in parts) + "\n")


def _title(message: Message) -> str:
    if message["role"] == "tool":
        return f"Result of {_line(message.get('name', 'a call'))}"
    return TITLES.get(message["role"], str(message["role"]))


def _line(text: str) -> str:
    return " ".join(text.split())


def _content(message: Message) -> str:
    text = message["content"]
    if message["role"] == "tool":
        return fenced(text)
    if message["role"] == "assistant":
        thought, text = split_thinking(text)
        if thought.strip():
            text = f"<details><summary>Reasoning</summary>\n\n{thought.strip()}\n\n</details>\n\n{text}"
        for call in calls_of(message):
            text = f"{text.rstrip()}\n\nCall of {_line(call.name)}:\n\n{fenced(call.arguments, 'json')}"
    return f"{text}\n\n*({words})*" if (words := ending(message)) else text
