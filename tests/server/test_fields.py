"""What all requests have in common, whatever their protocol."""

from collections.abc import Iterator
from typing import Any

import pytest

from afmoe_mlx.server.endpoint import Endpoint
from afmoe_mlx.server.protocols import ENDPOINTS


def lists_of(schema: Any) -> Iterator[dict[str, Any]]:
    """The lists that a form has at any depth, as pydantic describes them."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "tuple", "set", "frozenset"):
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for one in schema:
            yield from lists_of(one)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.path)
def test_of_a_list_one_error_is_told_and_no_more_are_looked_for(endpoint: Endpoint) -> None:
    assert all(schema.get("fail_fast") for schema in lists_of(endpoint.body.__pydantic_core_schema__))
