"""Whether an answer satisfies a JSON schema, in a time that its length bounds, whatever the schema."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

# References that are followed at most: their number may grow by a power of those that a schema has.
MOST_REFERENCES = 20_000


class _TooMuchError(Exception):
    """A check that is given up."""


def violation(schema: Mapping[str, Any], text: str) -> str | None:
    """What of a schema a JSON text does not satisfy, in a line; None if it does."""
    from jsonschema import validators
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY

    try:
        form = _bounded(validators.validator_for(schema))
        validator = form(schema, registry=EMPTY_REGISTRY)  # by default it would use the net
        error = next(validator.iter_errors(json.loads(text)), None)
    except (_TooMuchError, re.error, RecursionError, Unresolvable, ValueError) as problem:
        return f"it cannot be checked ({' '.join(str(problem).split())})"
    return None if error is None else f"{error.json_path}: {' '.join(error.message.split())}"


def _bounded(form: Any) -> Any:
    """The validator with references that are counted, and patterns as the constraint has them.

    Python's could take until the end of the world, in which no other thread runs.
    """
    from jsonschema import ValidationError, validators

    follow, followed = form.VALIDATORS["$ref"], 0

    def ref(validator: Any, place: Any, value: Any, schema: Any) -> Any:
        nonlocal followed
        followed += 1
        if followed > MOST_REFERENCES:
            raise _TooMuchError(f"more than {MOST_REFERENCES:,} references")
        return follow(validator, place, value, schema)

    def pattern(validator: Any, found: Any, value: Any, schema: Any) -> Iterator[Any]:
        if isinstance(value, str) and not matches(found, value):
            yield ValidationError(f"{value!r} does not match {found!r}")

    def pattern_properties(validator: Any, patterns: Any, value: Any, schema: Any) -> Iterator[Any]:
        for name in value if isinstance(value, dict) else ():
            for one in (one for one in patterns if matches(one, name)):
                yield from validator.descend(value[name], patterns[one], path=name, schema_path=one)

    def additional_properties(validator: Any, other: Any, value: Any, schema: Any) -> Iterator[Any]:
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name in value if isinstance(value, dict) else ():
            if name in known or any(matches(one, name) for one in patterns):
                continue
            if other is False:
                yield ValidationError(f"{name!r} is no property that may be there")
            else:
                yield from validator.descend(value[name], other, path=name)

    matches = cache(_matches)
    own = {
        "$ref": ref,
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
    }
    return validators.extend(form, own)


def _matches(pattern: str, text: str) -> bool:
    """Whether a pattern is somewhere in a text."""
    from llguidance import LLMatcher, LLTokenizer

    grammar = json.dumps({"grammars": [{"json_schema": {"type": "string", "pattern": pattern}}]})
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    value = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").encode()
    taken = matcher.try_consume_tokens(list(value))
    if error := matcher.get_error():
        raise ValueError(f"pattern {pattern!r}: {error}")
    return taken == len(value) and matcher.is_accepting()
