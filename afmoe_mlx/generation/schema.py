"""JSON schemas: what of them cannot be enforced or satisfied, and where that stands."""

import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any
from urllib.parse import unquote

from ..errors import InputError

Schema = Mapping[str, Any]

# Compact, with the blanks that models have seen most; a schema's own "x-guidance" wins.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Where schemas stand in a schema; elsewhere, as in `enum` and `default`, there are values.
_ONE = ("items", "additionalItems", "additionalProperties")
_LISTS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
# Levels that llguidance may go down, by recursion: at about 2,000 a thread's stack of 8 MiB is full.
DEEPEST = 1000
_NAME = re.compile(r"[A-Za-z_$][\w$]*")


def parse_schema(schema: Any) -> dict[str, Any]:
    """A schema as it is given, an object or its JSON text; InputError for anything else."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InputError(f'json_schema is no JSON ({error}): expected an object such as {{"type": …}}') from None
    if not isinstance(schema, Mapping):
        raise InputError(f'json_schema is {reprlib.repr(schema)}: expected an object such as {{"type": …}}')
    try:
        json.dumps(dict(schema), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InputError("json_schema has a lone surrogate (damaged UTF-8): expected text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"json_schema holds what is not JSON ({error}): expected JSON's values alone") from None
    return dict(schema)


def with_layout(schema: Schema, *, lenient: bool = False) -> dict[str, Any]:
    """The same with how llguidance is to read it, and where it leaves blanks; lenient: past what it cannot enforce."""
    own = schema.get("x-guidance")
    rules = {"coerce_one_of": True, "lenient": lenient}  # oneOf runs as anyOf, and is checked afterwards
    return {**schema, "x-guidance": {**LAYOUT, **(own if isinstance(own, Mapping) else {}), **rules}}


def in_words(schema: Schema, reason: str) -> str:
    """What is wrong with a schema, by what llguidance says of it: keywords by name and place."""
    if keys := re.fullmatch(r"Unimplemented keys: \[(.*)\]", reason):
        names = [name.strip().strip('"') for name in keys[1].split(",")]
        found = next(
            ((path, name) for path, part in _schemas(schema) for name in names if name in part), ("$", names[0])
        )
        return f"{found[1]} at {found[0]} cannot be enforced: leave it out"
    if name := re.fullmatch(r"Unknown format: (.*)", reason):
        path = next((path for path, part in _schemas(schema) if part.get("format") == name[1]), "$")
        return f"format {name[1]!r} at {path} cannot be enforced: leave it out"
    if reason.startswith("Unsatisfiable schema: "):
        return f"nothing can satisfy it: {reason.removeprefix('Unsatisfiable schema: ')}"
    if outside := re.match(r"Resource '(.*)' is not present", reason):
        return (
            f"a reference to {outside[1]!r} cannot be followed: expected one to a part of the schema, as in #/$defs/a"
        )
    return f"{reason}: expected a {'smaller one' if reason == 'schema too large' else 'JSON schema'}"


def _schemas(schema: Any, path: str = "$") -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema, with its path; the definitions last."""
    if not isinstance(schema, Mapping):
        return
    yield path, schema
    for key in _ONE:
        yield from _schemas(schema.get(key), f"{path}.{key}")
    for key in _LISTS:
        if isinstance(parts := schema.get(key), list):
            for i, part in enumerate(parts):
                yield from _schemas(part, f"{path}.{key}[{i}]")
    for key in _MAPS:
        if isinstance(parts := schema.get(key), Mapping):
            for name, part in parts.items():
                yield from _schemas(part, f"{path}.{key}{_step(name)}")


def _step(name: str) -> str:
    return f".{name}" if _NAME.fullmatch(name) else f"[{name!r}]"


def is_too_deep(schema: Schema) -> bool:
    """Whether the library could go so deep into a schema that the process died of it."""
    return _depth(schema) > DEEPEST


def _depth(schema: Schema) -> int:
    """Levels at most if each part that is referred to stands within another; where they are over `DEEPEST`, only that.

    A reference by another name than its place may be to anything; so may all where parts have names, `$id`, of theirs.
    """
    whole = _nesting(schema)
    places = list(_references(schema))
    if any("$id" in part for part in _mappings(schema) if part is not schema):
        return whole * (1 + len(places))
    parts = {id(part): part for place in set(places) if (part := _at(schema, place)) is not None}
    levels = whole * (1 + sum(_at(schema, place) is None for place in set(places)))
    for part in parts.values():
        if levels > DEEPEST:
            break
        levels += max(_nesting(part), 1)
    return levels


def _nesting(value: Any) -> int:
    """Levels of lists and mappings within each other."""
    levels, found = 0, [value]
    while found := [part for one in found for part in _parts(one)]:
        levels += 1
    return levels


def _references(schema: Schema) -> Iterator[str]:
    return (ref for part in _mappings(schema) if isinstance(ref := part.get("$ref"), str))


def _mappings(value: Any) -> Iterator[Schema]:
    """Every mapping in a value, itself too: more than the schemas, as a reference may make one of any."""
    left = [value]
    while left:
        if isinstance(one := left.pop(), Mapping):
            yield one
        left += _parts(one)


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()


def never_ends(schema: Schema) -> bool:
    """Whether whatever satisfies a schema holds itself, as a required property that is the whole again."""
    left = {place: _at(schema, place) for place in _references(schema)}
    ending = set[str]()
    while done := [place for place, part in left.items() if _ends(part, ending)]:
        ending.update(done)
        for place in done:
            del left[place]
    return not _ends(schema, ending)


def _ends(schema: Any, ending: Set[str]) -> bool:
    """Whether something finite satisfies a schema, of which those references are known for that."""
    if not isinstance(schema, Mapping):
        return True
    if isinstance(ref := schema.get("$ref"), str) and ref not in ending:
        return False
    ends = [True]
    choices = [parts for key in ("anyOf", "oneOf") if isinstance(parts := schema.get(key), list)]
    ends += [any(_ends(part, ending) for part in parts) for parts in choices]
    if isinstance(parts := schema.get("allOf"), list):
        ends += [_ends(part, ending) for part in parts]
    properties, required = schema.get("properties"), schema.get("required")
    if schema.get("type") == "object" and isinstance(properties, Mapping) and isinstance(required, list):
        ends += [_ends(properties.get(name), ending) for name in required]
    if schema.get("type") == "array" and isinstance(count := schema.get("minItems"), int) and count > 0:
        first = schema.get("prefixItems")
        first = first[:count] if isinstance(first, list) else []
        ends += [_ends(part, ending) for part in [*first, *[schema.get("items")] * (len(first) < count)]]
    return all(ends)


def _at(root: Schema, ref: str) -> Any:
    """What a reference within the schema stands for, None for any other."""
    if ref != "#" and not ref.startswith("#/"):
        return None
    found: Any = root
    for step in unquote(ref[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found
