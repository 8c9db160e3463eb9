"""The result of a call, as text: other content is named, and what is longer than it may be is cut with a note."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp.types import CallToolResult, ContentBlock


LONGEST_TOKEN = 32  # characters, so that a result of megabytes is not encoded whole


@dataclass(frozen=True)
class ToolResult:
    """What came of a call, for the model. is_error: it is what went wrong."""

    text: str
    is_error: bool = False


def failure(words: str) -> ToolResult:
    """The result of a call that was not made, or failed."""
    return ToolResult(f"error: {words}", is_error=True)


def unavailable(server: str, trouble: str) -> ToolResult:
    """The result of a call of a server that cannot be called."""
    return failure(f"the server {server} is not there: {trouble}")


def of_server(found: "CallToolResult") -> ToolResult:
    """What an MCP server has given: its texts; images and other content by their kind and size."""
    text = "\n".join(_shown(block) for block in found.content)
    if not found.content and found.structured_content is not None:
        text = json.dumps(found.structured_content, ensure_ascii=False)
    return ToolResult(text, is_error=found.is_error)


def _shown(block: "ContentBlock") -> str:
    match block.type:
        case "text":
            return block.text
        case "image" | "audio":
            return f"[{block.type}, {block.mime_type}, {_bytes(block.data)}: not shown]"
        case "resource_link":
            return f"[link to {block.name}: {block.uri}]"
        case "resource":
            if (text := getattr(block.resource, "text", None)) is not None:
                return str(text)
            what = f"{block.resource.mime_type or 'binary'}, {_bytes(getattr(block.resource, 'blob', ''))}"
            return f"[{block.resource.uri}, {what}: not shown]"


def _bytes(base64: str) -> str:
    return f"{len(base64) * 3 // 4:,} bytes"


def fitted(result: ToolResult, most: int, count: Callable[[str], int]) -> ToolResult:
    """A result of at most `most` tokens as `count` counts them, a note on what was cut aside."""
    text, characters = result.text, len(result.text)
    text = text[: most * LONGEST_TOKEN]
    while text and (tokens := count(text)) > most:
        text = text[: len(text) * most // tokens]
    if len(text) == characters:
        return result
    note = f"[cut here: {characters - len(text):,} of {characters:,} characters do not fit]"
    return ToolResult(f"{text}\n{note}" if text else note, result.is_error)
