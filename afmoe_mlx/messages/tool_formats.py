"""How models write tool calls, and which model writes them how.

| name | a call | recognised by |
|---|---|---|
| hermes | `<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>` | `<tool_call>` |
| qwen3_coder | `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>` | `<function=`, too |
| pythonic | `<|tool_call_start|>[f(a=1), g()]<|tool_call_end|>` | `<|tool_call_start|>`, `<|tool_list_start|>` |

What the chat template mentions counts, then what the vocabulary has as a token. A template that does not read `tools`
has no format.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..tokenizer import Tokenizer
from . import hermes, pythonic, qwen3_coder
from .calls import Calls, Written
from .incoming import Incoming, Waiting

_TOOLS = re.compile(r"\btools\b")


@dataclass(frozen=True)
class ToolFormat:
    """A way to write calls: between `begin` and `end`, which a text that is no call may hold too, a body."""

    name: str
    begin: str
    end: str
    read: Callable[[Incoming, Calls], Waiting[None]]
    """Reads a body and `end`, telling `Calls` what it finds."""
    write: Callable[[Sequence[Written]], str]
    """The text of calls."""
    between: str
    """What stands between an answer's content and its calls."""


HERMES = ToolFormat("hermes", hermes.BEGIN, hermes.END, hermes.read, hermes.write, "\n")
QWEN3_CODER = ToolFormat("qwen3_coder", qwen3_coder.BEGIN, qwen3_coder.END, qwen3_coder.read, qwen3_coder.write, "\n")
PYTHONIC = ToolFormat("pythonic", pythonic.BEGIN, pythonic.END, pythonic.read, pythonic.write, "")
FORMATS = {form.name: form for form in (HERMES, QWEN3_CODER, PYTHONIC)}


def named(name: str) -> ToolFormat:
    """The format of a name; InputError if there is none."""
    if name not in FORMATS:
        raise InputError(f"tool_format is {name!r}, expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(tokenizer: Tokenizer) -> ToolFormat | None:
    """The format that a model is told to write calls in, None if it is told of no tools."""
    template = tokenizer.tool_template or ""
    if not _TOOLS.search(template):
        return None
    if HERMES.begin in template:
        return QWEN3_CODER if "<function=" in template else HERMES
    if PYTHONIC.begin in template or "<|tool_list_start|>" in template:
        return PYTHONIC
    return next((form for form in (PYTHONIC, HERMES) if tokenizer.token_to_id(form.begin) is not None), None)
