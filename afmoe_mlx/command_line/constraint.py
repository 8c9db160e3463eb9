"""`--json-schema`: what an answer is held to, from the command line or a file."""

from typing import Any

from ..errors import InputError
from .text_files import parse_json, read_text

EXPECTED = 'expected a schema, an object such as {"type": …}'


def read_schema(given: str, name: str = "--json-schema") -> dict[str, Any]:
    """A JSON schema from its text, which begins with a brace, or from a file; InputError for anything else."""
    text, found = (given, name) if given.lstrip().startswith("{") else (read_text(given, name), f"{name} {given}")
    schema = parse_json(text, found, EXPECTED)
    if not isinstance(schema, dict):
        raise InputError(f"{found}: a {type(schema).__name__}: {EXPECTED}")
    return schema
