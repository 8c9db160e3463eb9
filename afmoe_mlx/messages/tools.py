"""Tools that a model is offered, in OpenAI's form: names and the JSON schemas of their arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError

EXPECTED = 'expected a list of tools such as {"type": "function", "function": {"name": "f", "parameters": {}}}'


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools in OpenAI's form; a bare function is put into it. InputError for anything else, and for a name twice."""
    if not isinstance(tools, list | tuple):
        raise InputError(f"tools are a {type(tools).__name__}: {EXPECTED}")
    checked = [_checked(tool, index) for index, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in checked]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two tools are called {name!r}: expected names that differ")
    return checked


def argument_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's arguments, by the tool's name; InputError for what is no tool."""
    functions = [tool["function"] for tool in check_tools(tools)]
    return {function["name"]: function.get("parameters") or {} for function in functions}


def _checked(tool: Any, index: int) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InputError(f"tools[{index}] has no function with a name: {EXPECTED}")
    if not isinstance(function.get("parameters") or {}, Mapping):
        raise InputError(f"tools[{index}], {function['name']!r}: parameters are no JSON schema, expected an object")
    return {"type": "function", "function": dict(function)} if function is tool else dict(tool)
