"""Values out of untrusted JSON and TOML: type checks, and how they are shown in a message."""

import reprlib
import sys
from collections.abc import Iterable
from typing import Any, TypeGuard

# Names listed in a message before "and N more".
LISTED = 5

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a finite number; a boolean is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def shown(value: Any) -> str:
    """A value for a message: on one line, and short however long it is."""
    return _SHORT.repr(value)


def listed(names: Iterable[str]) -> str:
    """Names for a message, sorted: the first few, and how many more there are."""
    ordered = sorted(names)
    first = (name if name.isprintable() and len(name) < 200 else shown(name) for name in ordered[:LISTED])
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return ", ".join(first) + more
