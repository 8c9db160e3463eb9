"""Messages in OpenAI's form, brought to what chat templates expect.

Roles system, user, assistant and tool; content that is text; calls as {"type": "function", "function": {"name": …,
"arguments": {…}}}, or in the content, where a template knows no calls; reasoning in the field that it reads, or in the
content.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..tokenizer import Tokenizer
from .reasoning import CLOSE, OPEN, REASONING_FIELDS, closed, fields, reasoning_field
from .tool_formats import HERMES, ToolFormat, format_of

Message = dict[str, Any]
"""{"role": "system", "user" or "assistant", "content": text}; in an answer broken off "stopped": True, in one that the
token limit or the context ended "cut_off": True. An answer's text may hold its reasoning, as the model wrote it.

An answer with calls of tools has "tool_calls", as in OpenAI's interface, and under "written" all of it as this model
wrote it, if it did. The result of one is {"role": "tool", "content": text, "tool_call_id": …, "name": …}."""


def for_template(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Message]:
    """Messages as the tokenizer's chat template takes them; InputError names the message that is none.

    An answer's reasoning is closed where it was cut off. It stands in a field of its own, as Transformers hands it
    over, for a template that reads one, and in the content for any other: that strips it or shows it. So do calls:
    a template that knows none of them, or cannot render one that is malformed, has them in the content, as the model
    writes them.
    """
    template, form = tokenizer.tool_template or "", format_of(tokenizer) or HERMES
    reads_calls = "tool_calls" in template
    return [
        _handed(message, f"messages[{i}]", reasoning_field(template), form, reads_calls=reads_calls)
        for i, message in enumerate(messages)
    ]


def _handed(
    message: Mapping[str, Any], where: str, field: str | None, form: ToolFormat, *, reads_calls: bool
) -> Message:
    if not isinstance(message, Mapping):
        raise InputError(f'{where} is of type {type(message).__name__}, expected {{"role": "user", "content": "…"}}')
    content = _text(message.get("content"), where)
    others = {key: value for key, value in message.items() if key not in ("tool_calls", *REASONING_FIELDS)}
    if message.get("role") == "developer":
        others["role"] = "system"
    if message.get("role") != "assistant":
        return others | {"content": content}
    calls = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(_calls(message, where))]
    if calls:  # what the model wrote between them is written again
        content = content.removesuffix(form.between)
    handed = _with_reasoning(message, content, field)
    if reads_calls and all(isinstance(call["function"]["arguments"], dict) for call in calls):
        return others | handed | ({"tool_calls": calls} if calls else {})
    written = form.write([(call["function"]["name"], call["function"]["arguments"]) for call in calls])
    between = form.between if calls and handed["content"] else ""
    return others | handed | {"content": handed["content"] + between + written}


def _text(content: Any, where: str) -> str:
    """The text of a message's content: text, parts of type text, or nothing."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise InputError(f"{where}: content is of type {type(content).__name__}, expected text or a list of parts")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InputError(
                f"{where}: content has a part of type {kind!r}, expected text: the model sees nothing else"
            )
    return "".join(part["text"] for part in content)


def _with_reasoning(message: Mapping[str, Any], content: str, field: str | None) -> Message:
    reasoning = next((message[name] for name in REASONING_FIELDS if isinstance(message.get(name), str)), None)
    if reasoning is None:
        return dict(fields(content, field)) if field else {"content": closed(content)}
    if field:
        return {field: reasoning, "content": content}
    return {"content": f"{OPEN}\n{reasoning.strip(chr(10))}\n{CLOSE}\n\n{content}" if reasoning else content}


def _calls(message: Mapping[str, Any], where: str) -> Sequence[Any]:
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise InputError(f"{where}: tool_calls are of type {type(calls).__name__}, expected a list")
    return calls


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call with its arguments as an object, or as they were written if that is no object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(f'{where} has no name: expected {{"function": {{"name": "f", "arguments": "{{}}"}}}}')
    arguments = function.get("arguments")
    if not isinstance(arguments, Mapping | str | None):
        raise InputError(f"{where}: arguments are of type {type(arguments).__name__}, expected an object or its text")
    read = _object(arguments) if isinstance(arguments, str) else dict(arguments or {})
    kept = {"id": call["id"]} if "id" in call else {}
    return {"type": "function", **kept, "function": {"name": function["name"], "arguments": read}}


def _object(text: str) -> dict[str, Any] | str:
    """The JSON object in a text, {} for an empty one; the text itself if it is no object's."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
