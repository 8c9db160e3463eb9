"""Tools that a request offers, and which of them are to be called."""

from collections.abc import Sequence
from typing import Any, Literal

from ..fields import Fields
from ..tools import checked, log_left_out


class FunctionName(Fields):
    """One function, by its name."""

    name: str


class NamedTool(Fields):
    """The tool that is to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def functions_of(tools: Sequence[dict[str, Any]], request: str) -> list[dict[str, Any]]:
    """Those that are functions, in OpenAI's form; the log tells of the others. RequestError for what is no tool.

    request: its id, for the log.
    """
    kinds = {tool.get("type", "function") for tool in tools if isinstance(tool.get("type", "function"), str)}
    log_left_out(kinds - {"function"}, request)
    return checked([tool for tool in tools if tool.get("type", "function") == "function"])


def chosen(choice: ToolChoice | None) -> Any:
    """A choice as `ConstraintOptions` has it."""
    return choice.model_dump() if isinstance(choice, NamedTool) else choice
