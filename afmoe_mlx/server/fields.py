"""Kinds of fields that requests of several protocols have."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON's own kinds, not texts that look like them.
Flag = Annotated[bool, Strict()]
Number = Annotated[float, Strict()]
Integer = Annotated[int, Strict()]
WHOLE = BeforeValidator(_whole)
"""Lets an integer be written as 5.0, as JSON does; after its bounds, which a schema leaves out otherwise."""
Count = Annotated[Integer, Field(ge=0), WHOLE]
Positive = Annotated[Integer, Field(ge=1), WHOLE]

T = TypeVar("T")
Several = Annotated[list[T], Field(fail_fast=True)]
"""A list, read up to what is wrong in it: a million errors are told no better than one, and take a gigabyte."""

Share = Annotated[Number, Field(ge=0, le=1)]
Temperature = Annotated[Number, Field(ge=0)]
TopLogprobs = Annotated[Integer, Field(ge=0, le=20), WHOLE]
"""How many of the likeliest tokens are told with each."""
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Of OpenAI's: how much is thought."""

Text = Annotated[str, Field(min_length=1)]
Stops = Annotated[Several[Text], Field(max_length=64)]  # all are looked for at each token, of all rows
StopTexts = Annotated[Stops | Text, AfterValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Texts that end an answer; one may stand alone."""

Limit = Positive | Literal[-1]
"""Tokens of an answer; -1, which is NO_LIMIT: as many as there is room for."""


class Fields(BaseModel):
    """A field that has fields of its own, of which unknown ones are refused by name."""

    model_config = ConfigDict(extra="forbid")


class JSONSchema(Fields):
    """A schema by OpenAI's fields, held to in any case: `strict` changes nothing."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: Flag | None = None
