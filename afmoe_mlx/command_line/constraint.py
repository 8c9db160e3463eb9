"""`--json-schema`, `--regex` and `--grammar`: what an answer is held to, from the command line or a file."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_schema(given: str, name: str = "--json-schema") -> dict[str, Any]:
    """A JSON schema from its text, which begins with a brace, or from a file; InputError for anything else."""
    text, found = (given, name) if given.lstrip().startswith("{") else (read_text(given, name), f"{name} {given}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{found}: not valid JSON ({error}): expected a schema, such as {{"type": …}}') from None
    if not isinstance(schema, dict):
        raise InputError(f'{found}: a {type(schema).__name__}: expected a schema, an object such as {{"type": …}}')
    return schema


def read_text(path: str, name: str) -> str:
    """What is in a text file; InputError, which begins with `name`, if it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} {path}: not UTF-8 (byte {error.start}): expected text") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} {path}: cannot be read ({reason}): expected a file") from None
