"""JSON schemas: what of them cannot be enforced, where that stands, and whether an answer satisfies one."""

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
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


def never_ends(schema: Schema) -> bool:
    """Whether whatever satisfies a schema holds itself, as a required property that is the whole again."""
    return not _ends(schema, schema, frozenset())


def _ends(schema: Any, root: Schema, within: frozenset[str]) -> bool:
    """Whether something finite satisfies a schema without those references that one is `within`."""
    if not isinstance(schema, Mapping):
        return True
    ends = [True]
    if isinstance(ref := schema.get("$ref"), str):
        ends.append(ref not in within and _ends(_at(root, ref), root, within | {ref}))
    choices = [parts for key in ("anyOf", "oneOf") if isinstance(parts := schema.get(key), list)]
    ends += [any(_ends(part, root, within) for part in parts) for parts in choices]
    if isinstance(parts := schema.get("allOf"), list):
        ends += [_ends(part, root, within) for part in parts]
    properties, required = schema.get("properties"), schema.get("required")
    if schema.get("type") == "object" and isinstance(properties, Mapping) and isinstance(required, list):
        ends += [_ends(properties.get(name), root, within) for name in required]
    if schema.get("type") == "array" and isinstance(count := schema.get("minItems"), int) and count > 0:
        first = schema.get("prefixItems")
        first = first[:count] if isinstance(first, list) else []
        ends += [_ends(part, root, within) for part in [*first, *[schema.get("items")] * (len(first) < count)]]
    return all(ends)


def _at(root: Schema, ref: str) -> Any:
    """What a reference within the schema stands for, None for any other."""
    if not ref.startswith("#"):
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


def violation(schema: Schema, text: str) -> str | None:
    """What of a schema a JSON text does not satisfy, in a line; None if it does."""
    from jsonschema import validators
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY

    try:
        validator = validators.validator_for(schema)(schema, registry=EMPTY_REGISTRY)  # by default it would use the net
        error = next(validator.iter_errors(json.loads(text)), None)
    except (re.error, RecursionError, Unresolvable, ValueError) as problem:  # Python's patterns are others
        return f"it cannot be checked ({' '.join(str(problem).split())})"
    return None if error is None else f"{error.json_path}: {' '.join(error.message.split())}"
