"""`--prompts`: a JSONL file of prompts, each with options of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import AfmoeError, InputError
from ..generation import check_options
from ..messages.tools import check_tools
from ..terminal import read_stdin
from .text_files import parse_json, read_text

# Keys of a line that are no options.
OWN = ("prompt", "messages", "id")
EXPECTED = 'expected {"prompt": "…"} or {"messages": [{"role", "content"}, …]}'

# Bytes of stdin that are read.
MOST_STDIN = 256 << 20


@dataclass(frozen=True)
class PromptLine:
    """A line: a text or messages, and what is asked of its answer."""

    where: str
    """For messages to the user."""
    text: str | None
    messages: list[dict[str, Any]] | None
    options: dict[str, Any]
    """Those of `stream_generate` that it sets."""
    named: dict[str, Any]
    """{"id": any value} if it has one."""

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Within, an error is told as the line's."""
        try:
            yield
        except AfmoeError as error:
            raise InputError(f"{self.where}: {error}") from None


def read_prompts(path: str) -> list[PromptLine]:
    """The lines of a file, "-" for stdin, blank ones left out; InputError, naming the line, for what is no prompt."""
    content = read_stdin(MOST_STDIN) if path == "-" else read_text(path, "--prompts")
    name = "stdin" if path == "-" else path
    lines = [
        _line(f"{name}, line {number}", line)
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        raise InputError(f"{name} has no prompts: {EXPECTED} on each line")
    return lines


def _line(where: str, line: str) -> PromptLine:
    value = parse_json(line, where, EXPECTED)
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON {type(value).__name__}: {EXPECTED}")
    text, messages = value.get("prompt"), value.get("messages")
    if (text is None) == (messages is None):
        raise InputError(f"{where}: {'neither prompt nor' if text is None else 'both prompt and'} messages: {EXPECTED}")
    if not isinstance(text, str | None):
        raise InputError(f"{where}: prompt is no text: {EXPECTED}")
    if messages is not None and not _are_messages(messages):
        raise InputError(f"{where}: messages is no list of messages with a role: {EXPECTED}")
    options = {key: item for key, item in value.items() if key not in OWN}
    found = PromptLine(where, text, messages, options, {"id": value["id"]} if "id" in value else {})
    with found.blamed():
        if "tools" in options:
            options["tools"] = check_tools(options["tools"])
        check_options(**options)
    return found


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
    )
