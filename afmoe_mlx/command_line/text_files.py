"""What options name files for: text, and the JSON in it."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_text(path: str, name: str) -> str:
    """What is in a text file; InputError, which begins with `name`, if it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} {path}: not UTF-8 (byte {error.start}): expected text") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} {path}: cannot be read ({reason}): expected a file") from None


def parse_json(text: str, where: str, expected: str) -> Any:
    """The value in a JSON text; InputError, which begins with `where` and ends with `expected`, for any other."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}): {expected}") from None
