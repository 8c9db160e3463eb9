"""The protocols that are spoken: every `Endpoint`."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from . import openai
from .endpoint import Body, Endpoint
from .question import Call, Service


class ModelsBody(Body):
    """List what is served."""


class ModelBody(Body):
    """Tell of what is served, by its name."""

    model: str


class Model(BaseModel):
    """The model that is served."""

    model_config = ConfigDict(extra="allow")
    id: str
    created: int


class Models(BaseModel):
    """All models that are served: one."""

    model_config = ConfigDict(extra="allow")
    data: list[Model]


async def _models(service: Service, body: ModelsBody, call: Call) -> dict[str, Any]:
    return openai.models(service)


async def _model(service: Service, body: ModelBody, call: Call) -> dict[str, Any]:
    return openai.model(service)


ENDPOINTS = (
    *openai.ENDPOINTS,
    Endpoint("/v1/models", ModelsBody, Models, _models, openai.error_body, method="GET"),
    Endpoint("/v1/models/{model:path}", ModelBody, Model, _model, openai.error_body, method="GET"),
)
