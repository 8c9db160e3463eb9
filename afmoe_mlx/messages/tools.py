"""Tools that a model is offered, in OpenAI's form: names and the JSON schemas of their arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError

EXPECTED = 'expected a list of tools such as {"type": "function", "function": {"name": "f", "parameters": {}}}'

TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}
"""JSON's types, and what Python reads of them."""


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools in OpenAI's form; a bare function is put into it. InputError for anything else, and for a name twice."""
    if not isinstance(tools, list | tuple):
        raise InputError(f"tools are of type {type(tools).__name__}: {EXPECTED}")
    checked = [_checked(tool, index) for index, tool in enumerate(tools)]
    names = set[str]()
    for tool in checked:
        if (name := tool["function"]["name"]) in names:
            raise InputError(f"two tools are called {name!r}: expected names that differ")
        names.add(name)
    return checked


def argument_schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's arguments, by the tool's name; InputError for what is no tool."""
    functions = [tool["function"] for tool in check_tools(tools)]
    return {function["name"]: function.get("parameters") or {} for function in functions}


def argument_types(schema: Mapping[str, Any], name: str) -> set[str]:
    """The JSON types that a tool's schema allows one argument to have; none if it does not say."""
    types: set[str] = set()
    references: set[str] = set()  # a schema may name itself
    rest = [_at(schema, "properties", name)]
    while rest:
        if not isinstance(part := rest.pop(), Mapping):
            continue
        reference = part.get("$ref")
        if isinstance(reference, str) and reference not in references:
            references.add(reference)
            rest.append(_at(schema, *reference.removeprefix("#/").split("/")))
        rest += [one for key in ("anyOf", "oneOf", "allOf") for one in _listed(part.get(key))]
        values = [*_listed(part.get("enum")), *([part["const"]] if "const" in part else [])]
        types.update(kind for kind in TYPES if any(is_any(value, {kind}) for value in values))
        types.update(kind for kind in _listed(part.get("type")) if isinstance(kind, str) and kind in TYPES)
    return types


def is_any(value: Any, types: set[str]) -> bool:
    """Whether a value of JSON has one of these types."""
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return True
    return any(isinstance(value, TYPES[name]) for name in types)


def _at(schema: Any, *path: str) -> Any:
    """What stands at a path of keys, None if nothing does."""
    for key in path:
        schema = schema.get(key) if isinstance(schema, Mapping) else None
    return schema


def _listed(value: Any) -> Sequence[Any]:
    return () if value is None else value if isinstance(value, list) else (value,)


def _checked(tool: Any, index: int) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InputError(f"tools[{index}] has no function with a name: {EXPECTED}")
    if not isinstance(function.get("parameters") or {}, Mapping):
        raise InputError(f"tools[{index}], {function['name']!r}: parameters are no JSON schema, expected an object")
    return {"type": "function", "function": dict(function)} if function is tool else dict(tool)
