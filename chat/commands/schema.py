"""/schema: what the answers are held to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from afmoe_mlx.command_line.constraint import read_schema
from afmoe_mlx.generation import RULES, check_options
from afmoe_mlx.terminal import printable

from ..keyboard.completion import Candidate, words

if TYPE_CHECKING:
    from ..loop import Chat

NONE = "none"
SHOWN = 200  # characters of a schema


def schema(chat: Chat, argument: str) -> None:
    """Show the schema, hold answers to another from now on, or to none."""
    options = chat.conversation.options
    if argument and argument != NONE:
        wanted = read_schema(argument, "/schema")
        check_options(json_schema=wanted)
        options.update(dict.fromkeys(RULES) | {"json_schema": wanted})
    elif argument:
        options.update(dict.fromkeys(RULES))
    held = {name: options[name] for name in RULES if options.get(name) is not None}
    for name, value in held.items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
        chat.say(f"Answers are held to the {name.replace('json_', '')} {_short(shown)}; /schema none sets them free.")
    if not held:
        chat.say("Answers are held to no schema: /schema FILE, or /schema and its JSON.")


def complete(chat: Chat, typed: str) -> Iterable[Candidate]:
    return words([(NONE, "set answers free")], typed)


def _short(text: str) -> str:
    return printable(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")
