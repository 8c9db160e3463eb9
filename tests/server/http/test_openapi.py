"""The OpenAPI document is made of the endpoints, and says what they take and how they refuse."""

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.http.openapi import document
from afmoe_mlx.server.http.reading import check
from afmoe_mlx.server.protocols import ENDPOINTS
from afmoe_mlx.server.responses.forms import ResponsesBody
from helpers.asgi import ask
from helpers.fake_app import ECHO, EchoBody, make_app

DOCUMENT = document([ECHO], has_keys=True)
COMPONENTS = DOCUMENT["components"]
VALIDATOR = jsonschema.Draft202012Validator(COMPONENTS["schemas"]["EchoBody"] | {"components": COMPONENTS})


def test_every_path_is_there_with_its_answers() -> None:
    assert DOCUMENT["paths"].keys() == {"/health", "/metrics", "/openapi.json", "/v1/echo"}
    answers = DOCUMENT["paths"]["/v1/echo"]["post"]["responses"]
    assert answers.keys() >= {"200", "400", "401", "403", "404", "408", "413", "415", "429", "500", "503"}
    assert answers["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert DOCUMENT["paths"]["/health"]["get"]["security"] == []
    assert "security" not in document([ECHO], has_keys=False)


def test_a_field_is_told_as_it_is_checked_whatever_hints_have_its_name() -> None:
    told = document(ENDPOINTS, has_keys=False)["components"]["schemas"]["ResponsesBody"]["properties"]
    fields = ResponsesBody.model_json_schema()["properties"]
    assert told["metadata"] == fields["metadata"]
    assert "store" in told.keys() - fields.keys()


def test_it_is_what_is_served() -> None:
    assert ask(make_app(), "GET", "/openapi.json").json == document([ECHO], has_keys=False)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "content": st.text() | st.just([{"text": "a"}]) | st.integers(),
            "n": st.integers(-1, 2),
            "user": st.none(),
            "colour": st.none(),
        },
    )
)
def test_what_its_schema_takes_is_what_is_taken(fields: dict[str, object]) -> None:
    if VALIDATOR.is_valid(fields):
        check(EchoBody, fields, ignore_unknown=False)
    else:
        with pytest.raises(RequestError):
            check(EchoBody, fields, ignore_unknown=False)
