"""`response_format`: JSON that an answer is held to."""

from typing import Any, Literal, Self

from pydantic import model_validator

from ..fields import Fields, JSONSchema


class ResponseFormat(Fields):
    """Text as it comes, any JSON object, or what satisfies a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given if, and only if, type is 'json_schema'")
        return self

    @property
    def enforced_schema(self) -> dict[str, Any] | None:
        """The schema that the whole answer is held to, if it is held to one."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None
