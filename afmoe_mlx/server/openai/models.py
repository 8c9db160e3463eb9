"""The list of models, of which there is one: in the forms of OpenAI and Anthropic at once."""

from datetime import UTC, datetime
from typing import Any

from ..question import Service


def models(service: Service) -> dict[str, Any]:
    """The answer of GET /v1/models."""
    return {
        "object": "list",
        "data": [model(service)],
        "first_id": service.name,
        "last_id": service.name,
        "has_more": False,
    }


def model(service: Service) -> dict[str, Any]:
    """The answer of GET /v1/models/ with the name of the one that is served."""
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
    }
