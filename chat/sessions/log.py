"""The format of a session's file: JSON Lines, a record a line, only ever added to, replayed when it is read.

{"type": "session", "format": 1, "model": "demo", "created": "2026-11-24T09:00:00+00:00"}    always the first
{"type": "message", "role": "user", "content": "…"}               one more; an answer broken off has "stopped": true,
                                                                       one that a limit has ended "cut_off": true,
                                                one with calls "tool_calls": […] and, as it was "written": "…"
{"type": "message", "role": "tool", "content": "…", "tool_call_id": "call_1", "name": "…"}       the result of a call
{"type": "replace", "at": 2, "messages": […]}            the messages from number 2 on: an edit, an undo, in one line
{"type": "system", "content": "…"}                                               the system prompt; null: none
{"type": "model", "name": "…"}, {"type": "settings", "options": {…}}                       from here on
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from afmoe_mlx.errors import SessionError
from afmoe_mlx.messages.prompts import Message
from afmoe_mlx.messages.rounds import is_call
from afmoe_mlx.terminal import printable

FORMAT = 1
KINDS = ("message", "replace", "system", "model", "settings")
ROLES = ("user", "assistant", "tool")
MARKS, TEXTS = ("stopped", "cut_off"), ("written", "tool_call_id", "name")  # that a message may have

# What a terminal might obey or hide, of what JSON leaves as it is: a file that is looked at is only shown.
_UNSAFE = re.compile("[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


@dataclass(frozen=True)
class SessionState:
    """The state of a session after all records of its file."""

    model: str = ""
    created: str = ""
    """ISO 8601, in UTC."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of the answers, as far as JSON can hold them."""
    system: str | None = None
    messages: tuple[Message, ...] = ()
    """Those of the user and their answers."""


@dataclass(frozen=True)
class Replayed:
    """The result of reading a session's file."""

    state: SessionState
    warnings: list[str]
    """What was left out of it, a line each."""
    end: int
    """Bytes up to which there are whole lines: what follows, if anything does, was cut off."""


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """JSON for a file, readable, with nothing in it that drives a terminal."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def plain_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are set, as JSON gives them back: the ids of `logit_bias` as texts."""
    kept = {name: value for name, value in options.items() if isinstance(value, str | int | float | list | dict)}
    return dict(json.loads(json.dumps(kept)))


def encode(record: Mapping[str, Any]) -> bytes:
    """A record as a line."""
    return dump_json(record).encode() + b"\n"


def new_state(model: str) -> SessionState:
    """A session that begins now."""
    return SessionState(model=model, created=datetime.now(UTC).isoformat(timespec="seconds"))


def whole(state: SessionState) -> list[dict[str, Any]]:
    """The fewest records that say all of a state."""
    header = {"type": "session", "format": FORMAT, "model": state.model, "created": state.created}
    return [header, *changes(SessionState(model=state.model), state)]


def changes(before: SessionState, after: SessionState) -> list[dict[str, Any]]:
    """The records that lead from one state to another; a replacement of messages is one alone, so that none is half."""
    records: list[dict[str, Any]] = []
    if after.model != before.model:
        records.append({"type": "model", "name": after.model})
    if after.settings != before.settings:
        records.append({"type": "settings", "options": dict(after.settings)})
    if after.system != before.system:
        records.append({"type": "system", "content": after.system})
    pairs = zip(before.messages, after.messages, strict=False)
    common = next(
        (i for i, (old, new) in enumerate(pairs) if old != new), min(map(len, (before.messages, after.messages)))
    )
    new = list(after.messages[common:])
    if common < len(before.messages):
        records.append({"type": "replace", "at": common, "messages": new})
    else:
        records += ({"type": "message", **message} for message in new)
    return records


def replay(content: bytes, name: str) -> Replayed:
    """Read a session's file; SessionError for one of a newer program, or that is none."""
    lines = list(_lines(content))
    header = _record(lines[0][0]) if lines else None
    if header is None or header.get("type") != "session" or not isinstance(header.get("format"), int):
        raise SessionError(f"{printable(name)} is damaged or no saved chat: its first line is not a session's")
    if header["format"] > FORMAT:
        raise SessionError(
            f"{printable(name)} has format {header['format']}, this program knows {FORMAT}: update afmoe-mlx to open it"
        )
    state = SessionState(model=_text(header.get("model")), created=_text(header.get("created")))
    warnings: list[str] = []
    end = lines[0][1]
    for number, (line, after) in enumerate(lines[1:], 2):
        record = _record(line)
        changed = None if record is None else _applied(state, record)
        if changed is not None:
            state, end = changed, after
        elif record is not None and isinstance(record.get("type"), str) and record["type"] not in KINDS:
            warnings.append(f"line {number} is of a kind that this program does not know, {printable(record['type'])}")
            end = after
        elif content[after - 1 : after] != b"\n":
            warnings.append("the last line is cut off and left out: it was being written when the program ended")
        else:
            warnings.append(f"line {number} is damaged and left out")
            end = after
    return Replayed(state, warnings, end)


def _lines(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Each line that is not blank, and where the next one begins."""
    start = 0
    while start < len(content):
        newline = content.find(b"\n", start)
        end = len(content) if newline < 0 else newline + 1
        if line := content[start:end].strip(b" \t\r\n"):
            yield line, end
        start = end


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _message(value: object) -> Message | None:
    """A message as it may stand in a conversation; None for anything else."""
    if not isinstance(value, dict) or value.get("role") not in ROLES or not isinstance(value.get("content"), str):
        return None
    message: Message = {"role": value["role"], "content": value["content"]}
    message |= {mark: True for mark in MARKS if value.get(mark) is True}
    message |= {name: value[name] for name in TEXTS if isinstance(value.get(name), str)}
    if "tool_calls" in value:
        calls = value["tool_calls"]
        if not isinstance(calls, list) or not all(map(is_call, calls)):
            return None
        message["tool_calls"] = calls
    return message


def _applied(state: SessionState, record: Mapping[str, Any]) -> SessionState | None:
    """What a state becomes by a record; None for one that is unknown or damaged."""
    match record:
        case {"type": "message"} if message := _message(record):
            return replace(state, messages=(*state.messages, message))
        case {"type": "replace", "at": int(at), "messages": list(values)} if at >= 0:
            messages = [message for value in values if (message := _message(value))]
            return replace(state, messages=(*state.messages[:at], *messages)) if len(messages) == len(values) else None
        case {"type": "system", "content": str() | None as content}:
            return replace(state, system=content)
        case {"type": "model", "name": str(name)}:
            return replace(state, model=name)
        case {"type": "settings", "options": dict(options)}:
            return replace(state, settings=options)
    return None
