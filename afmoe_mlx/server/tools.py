"""Tools that a client offers, in OpenAI's form: functions alone."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import InputError
from ..messages.tools import check_tools
from .errors import RequestError

_log = logging.getLogger("afmoe_mlx.server")


def function_tool(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """A tool as chat templates show it: the same, whatever marks and order a client gives it."""
    described = {} if description is None else {"description": description}
    return {"type": "function", "function": {"name": name, **described, "parameters": parameters or {}}}


def checked(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same tools; RequestError for what is none, and for two of one name."""
    try:
        return check_tools(tools)
    except InputError as error:
        raise RequestError(400, str(error), param="tools") from error


def log_left_out(kinds: Iterable[str], request: str) -> None:
    """Tell the log of tools that are no functions, which nobody here could run. request: its id."""
    if others := sorted({ascii(kind[:40]) for kind in kinds}):
        _log.warning("%s: left out tools that are no functions: %s", request, ", ".join(others))


def choice_beside(form: Any, choice: Any, tools: Any, field: str) -> Any:
    """The `tool_choice` of an answer that may be held to a form: "auto" leaves it the choice of that and calls.

    RequestError where a call is to be made in any case: it could not be both. field: the form's.
    """
    if form is None or not tools:
        return choice
    if choice not in (None, "auto", "none"):
        raise RequestError(
            400, f"an answer that has to call a tool cannot be held to {field}: ask with one of them", param=field
        )
    return choice or "auto"
