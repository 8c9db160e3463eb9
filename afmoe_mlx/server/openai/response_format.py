"""`response_format`: JSON that an answer is held to."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..fields import Fields, Flag


class JsonSchema(Fields):
    """A schema, held to in any case: `strict` changes nothing."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: Flag | None = None


class ResponseFormat(Fields):
    """Text as it comes, any JSON object, or what satisfies a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given if, and only if, type is 'json_schema'")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What it adds to the options of an answer."""
        if self.json_schema is not None:
            return {"json_schema": self.json_schema.schema_}
        return {"json_schema": {"type": "object"}} if self.type == "json_object" else {}
