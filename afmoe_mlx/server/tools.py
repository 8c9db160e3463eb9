"""Tools that a client offers, in OpenAI's form: functions alone."""

import logging
import reprlib
from typing import Any

_log = logging.getLogger(__name__)


def function_tool(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """A tool as chat templates show it, the same whatever marks and order a client gives it."""
    described = {} if description is None else {"description": description}
    return {"type": "function", "function": {"name": name, **described, "parameters": parameters or {}}}


def log_dropped(index: int, kind: str) -> None:
    """Say in the log that a tool is no function, which no model here can be offered."""
    _log.info("tools[%d] is left out: its type is %s, expected a function", index, reprlib.repr(kind))
