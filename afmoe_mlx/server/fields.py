"""Kinds of fields that requests of several protocols have."""

from typing import Annotated

from pydantic import BeforeValidator

StopTexts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Texts that end an answer; one may stand alone."""
