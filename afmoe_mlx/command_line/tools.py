"""`--tools` and `--tool-choice`: the tools that a model is offered, from a file, and which it is to call."""

from typing import Any

from ..errors import InputError
from ..messages.tool_formats import format_of
from ..messages.tools import check_tools
from ..tokenizer import Tokenizer
from .text_files import parse_json, read_text


def read_tools(path: str | None, *, option: str = "--tools") -> list[dict[str, Any]] | None:
    """The tools in a file, OpenAI's list of them as JSON, None for no path; InputError if it is none.

    option: what the user calls it by.
    """
    if path is None:
        return None
    value = parse_json(read_text(path, option), f"{option} {path}", "expected a list of tools")
    try:
        return check_tools(value)
    except InputError as error:
        raise InputError(f"{option} {path}: {error}") from None


def tool_choice(given: str | None) -> dict[str, Any] | str | None:
    """What --tool-choice says, in OpenAI's form: a tool's name, or one of the words for all of them."""
    if given in (None, "auto", "none", "required"):
        return given
    return {"type": "function", "function": {"name": given}}


def check_template(tokenizer: Tokenizer, *, option: str = "--tools") -> None:
    """InputError if the model's chat template has no place for tools."""
    if format_of(tokenizer) is None:
        raise InputError(
            f"{option}: this model's chat template knows no tools: choose another model, or --chat-template"
        )
