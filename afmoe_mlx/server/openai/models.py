"""/v1/models: the list of models, of which there is one, in the forms of OpenAI and Anthropic at once."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

from ..endpoint import Body, Endpoint
from ..question import Call, Service
from .errors import error_body


class ModelsBody(Body):
    """The models that are served."""


class ModelBody(Body):
    """A model that is served."""

    model: str


class Model(BaseModel):
    """A model. max_model_len, max_input_tokens, max_tokens: of a prompt and its answer, a prompt, an answer.

    defaults: how an answer is made where its request says nothing of it.
    """

    id: str
    object: Literal["model"]
    type: Literal["model"]
    created: int
    created_at: str
    owned_by: str
    display_name: str
    lifecycle: Literal["active"]
    max_model_len: int
    max_input_tokens: int
    max_tokens: int
    defaults: dict[str, float]


class Models(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[Model]
    first_id: str
    last_id: str
    has_more: Literal[False]


def models(service: Service) -> dict[str, Any]:
    """All that are served: the one."""
    return {
        "object": "list",
        "data": [model(service)],
        "first_id": service.name,
        "last_id": service.name,
        "has_more": False,
    }


def model(service: Service) -> dict[str, Any]:
    """The one that is served."""
    return {
        "id": service.name,
        "object": "model",
        "type": "model",
        "created": service.created,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "afmoe-mlx",
        "display_name": service.name,
        "lifecycle": "active",
        "max_model_len": service.context,
        "max_input_tokens": service.context - 1,
        "max_tokens": service.context,
        "defaults": dict(service.defaults),
    }


async def list_models(service: Service, body: ModelsBody, call: Call) -> dict[str, Any]:
    """Answer a request for all."""
    return models(service)


async def get_model(service: Service, body: ModelBody, call: Call) -> dict[str, Any]:
    """Answer a request for one, whose name has been checked."""
    return model(service)


MODELS = Endpoint("/v1/models", ModelsBody, Models, list_models, error_body, method="GET")
MODEL = Endpoint("/v1/models/{model:path}", ModelBody, Model, get_model, error_body, method="GET")
