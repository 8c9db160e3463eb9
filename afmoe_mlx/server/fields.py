"""Kinds of fields that requests of several protocols have."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

StopTexts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Texts that end an answer; one may stand alone."""

Limit = Annotated[int, Field(ge=1)] | Literal[-1]
"""Tokens of an answer; -1: as many as there is room for."""


class Fields(BaseModel):
    """A field that has fields of its own, of which unknown ones are refused by name."""

    model_config = ConfigDict(extra="forbid")
