"""The OpenAPI document: paths, forms and errors of the `Endpoint`s, made of their pydantic models."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..endpoint import Body, Endpoint
from .probe import Status

# Errors that any path may answer with, and those of requests with a body.
ERRORS = (400, 401, 403, 404, 405, 426, 500, 503)
BODY_ERRORS = (408, 413, 415, 429)


class Health(BaseModel):
    """Whether requests are answered: ok, unloaded until the next one, or dead."""

    status: Status
    server: Literal["afmoe-mlx"]


def document(endpoints: Sequence[Endpoint], *, has_keys: bool) -> dict[str, Any]:
    """The document, as a client's generator reads it."""
    modes: dict[type[BaseModel], Any] = {Health: "serialization"}
    for endpoint in endpoints:
        modes |= {endpoint.body: "validation", endpoint.answer: "serialization"}
    references, schemas = models_json_schema([*modes.items()], ref_template="#/components/schemas/{model}")
    named = {form: references[form, mode] for form, mode in modes.items()}
    components: dict[str, Any] = {"schemas": schemas.get("$defs", {})}
    paths: dict[str, Any] = {
        "/health": {"get": _own("Whether requests are answered.", _json(named[Health]), has_keys=False)},
        "/metrics": {"get": _own("Figures for Prometheus.", {"text/plain": {"schema": {"type": "string"}}})},
        "/openapi.json": {"get": _own("This document.", _json({"type": "object"}))},
    }
    for endpoint in endpoints:
        _close(components["schemas"], named[endpoint.body], endpoint.body)
        path = re.sub(r"{(\w+):\w+}", r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, named)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "afmoe-mlx", "version": version("afmoe-mlx")},
        "paths": paths,
        "components": components,
    }
    if has_keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        found["security"] = [{"bearer": []}, {"key": []}]
    return found


def _operation(endpoint: Endpoint, named: Mapping[type[BaseModel], Any]) -> dict[str, Any]:
    content: dict[str, Any] = _json(named[endpoint.answer])
    summary = " ".join((endpoint.body.__doc__ or "").split("\n\n")[0].split())
    if endpoint.method == "GET":
        names = re.findall(r"{(\w+)", endpoint.path)
        parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
        return {"summary": summary, "parameters": parameters, "responses": _responses(content, ERRORS)}
    if "stream" in endpoint.body.model_fields:
        content |= {"text/event-stream": {"schema": {}}}
    body = {"required": True, "content": _json(named[endpoint.body])}
    return {"summary": summary, "requestBody": body, "responses": _responses(content, (*ERRORS, *BODY_ERRORS))}


def _own(summary: str, content: dict[str, Any], *, has_keys: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "responses": _responses(content, ERRORS)}
    return found if has_keys else found | {"security": []}


def _responses(content: dict[str, Any], errors: Sequence[int]) -> dict[str, Any]:
    failed = {
        str(status): {"description": HTTPStatus(status).phrase, "content": _json({"type": "object"})}
        for status in errors
    }
    return {"200": {"description": "The answer.", "content": content}} | failed


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _close(schemas: dict[str, Any], reference: Mapping[str, str], form: type[Body]) -> None:
    """Say of a body that it has its fields and hints, and no others."""
    schema = schemas[reference["$ref"].rpartition("/")[2]]
    hints = {name: {"description": words} for name, words in sorted(form.HINTS.items())}
    schema["properties"] = hints | schema.get("properties", {})
    schema["additionalProperties"] = False
