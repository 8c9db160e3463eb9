"""Models and errors, in the forms that clients of both interfaces read."""

from typing import Any

import pytest

from afmoe_mlx.server.errors import ContextLengthError, RequestError
from afmoe_mlx.server.openai import error_body
from afmoe_mlx.server.openai.models import MODEL, MODELS, Model, Models
from helpers.endpoints import ask
from helpers.fake_engine import FakeTokenizer
from helpers.fake_service import FakeService

TOKENIZER: Any = FakeTokenizer()


def test_the_list_of_models_has_the_one_that_is_served() -> None:
    service = FakeService(TOKENIZER, name="org/tiny")
    found = ask(MODELS, service)
    assert found["data"] == [ask(MODEL, service, model="org/tiny")]
    Models.model_validate(found)
    assert found["data"][0]["defaults"] == service.defaults
    assert found["data"][0].keys() == Model.model_fields.keys()
    assert {found["data"][0]["id"], found["first_id"], found["last_id"]} == {"org/tiny"}
    assert found["has_more"] is False


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_says_whose_it_is(status: int, kind: str) -> None:
    found = error_body(RequestError(status, "no", code="c", param="p"))
    assert found == {"error": {"message": "no", "type": kind, "param": "p", "code": "c"}}


def test_a_prompt_that_is_too_long_has_the_code_that_agents_read() -> None:
    assert error_body(ContextLengthError(9, 5))["error"]["code"] == "context_length_exceeded"
