"""A command's parameters, declared once: the fields of a dataclass become its arguments and options."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints


def command_of(request: type, run: Callable[[Any], None]) -> Callable[..., None]:
    """The function that Typer makes a command of: its parameters are the fields of `request`, those without a default
    first, its help the docstring.

    request: a dataclass whose fields are annotated as Typer wants it. run: what is called with one.
    """
    hints = get_type_hints(request, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in sorted(fields(request), key=lambda field: field.default is not MISSING)
    ]

    def command(**given: Any) -> None:
        run(request(**given))

    command.__doc__ = request.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
