"""A request's body: read within limits, parsed, and checked against what an `Endpoint` takes."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.types import Receive

from ..endpoint import Body
from ..errors import RequestError

B = TypeVar("B", bound=Body)

# Values in a request, at most: a prompt of token ids has as many as there are in a context, any other far fewer.
MOST_VALUES = 200_000
# Keys of one object, at most: each may be an error of its own.
MOST_KEYS = 10_000
# pydantic's name for what is of none of several kinds.
_TAG = "union_tag_invalid"
# The longest message of an error, in characters.
_LONGEST = 500


class ClientGoneError(Exception):
    """Whoever asked does not wait for the answer."""


async def read_json(headers: Mapping[str, str], receive: Receive, *, max_body: int, timeout: float) -> dict[str, Any]:
    """The object that a request holds. RequestError 400, 408, 413 or 415; ClientGoneError.

    Only what says that it is JSON is read: for anything else, a browser asks a page on no other site first.
    """
    kind = headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            415, f"content-type is {kind[:80]!r}: expected application/json", code="unsupported_media_type"
        )
    if (coding := headers.get("content-encoding", "identity")) != "identity":
        raise RequestError(415, f"content-encoding is {coding[:80]!r}: expected none", code="unsupported_media_type")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_body:
        raise _too_large(max_body)
    try:
        async with asyncio.timeout(timeout):
            return parse(await _read(receive, max_body))
    except TimeoutError:
        raise RequestError(408, f"the request did not arrive in {timeout:g} seconds", code="request_timeout") from None


async def _read(receive: Receive, max_body: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > max_body:
            raise _too_large(max_body)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_body: int) -> RequestError:
    return RequestError(413, f"the request has more than {max_body:,} bytes", code="request_too_large")


def parse(text: bytes) -> dict[str, Any]:
    """An object in JSON; RequestError 400 for anything else, numbers that are not finite and lone surrogates too."""
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(400, "the body is not a JSON object", code="invalid_json")
    _check_values(value)
    return value


def _check_values(value: dict[str, Any]) -> None:
    """RequestError 400 for more values than are worth looking at, and for numbers that no float holds."""
    found, left = 0, list[dict[str, Any] | list[Any]]([value])
    while left:
        some = left.pop()
        found += len(some)
        if found > MOST_VALUES or (isinstance(some, dict) and len(some) > MOST_KEYS):
            most = f"{MOST_VALUES:,} values, or an object more than {MOST_KEYS:,} keys"
            raise RequestError(400, f"the body has more than {most}", code="invalid_json")
        for one in some.values() if isinstance(some, dict) else some:
            if isinstance(one, dict | list):
                left.append(one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise RequestError(400, "the body has a number that is too large", code="invalid_json")


def check(form: type[B], fields: Mapping[str, Any], *, ignore_unknown: bool) -> B:
    """A request's fields as its `Endpoint` takes them. RequestError 400 names the first that is wrong or unknown."""
    try:
        body = form.model_validate(fields, extra="ignore" if ignore_unknown else None)
    except ValidationError as error:
        raise _invalid(error, fields) from None
    if unknown := sorted((body.model_extra or {}).keys() - form.HINTS):
        raise _unknown(unknown)
    return body


def _unknown(names: Sequence[str]) -> RequestError:
    told = ", ".join(name[:80] for name in names[:5])
    return RequestError(
        400, f"unknown field: {told} (serve --ignore-unknown lets it pass)", code="unknown_field", param=names[0]
    )


def check_model(body: Body, name: str) -> None:
    """RequestError 404 unless a request that names a model names the one that is served, or its last part."""
    asked = getattr(body, "model", None)
    if isinstance(asked, str) and asked not in (name, name.rpartition("/")[2]):
        raise RequestError(
            404, f"model {asked[:200]!r} is not served here: expected {name!r}", code="model_not_found", param="model"
        )


def _invalid(error: ValidationError, fields: Mapping[str, Any]) -> RequestError:
    """The first of several errors; where a field may be of several forms, of that which it is nearest to: where it is
    wrong the deepest within, or of the right type at least."""
    found = error.errors(include_url=False, include_input=False)
    places = [_place(one["loc"], fields, is_missing=one["type"] == "missing") for one in found]
    first = places[0][:1]
    place, wrong = max(
        ((place, one) for place, one in zip(places, found, strict=True) if place[:1] == first),
        key=lambda one: (len(one[0]), one[1]["type"] == _TAG, not one[1]["type"].endswith("_type")),
    )
    named = ".".join(place)
    if wrong["type"] == "extra_forbidden":
        return _unknown([named])
    message = wrong["msg"].removeprefix("Value error, ")
    if wrong["type"] == _TAG:
        message = f"{str(wrong['ctx']['tag'])[:80]!r} is not supported: expected {wrong['ctx']['expected_tags']}"
    message = message[:_LONGEST]
    return RequestError(400, f"{named}: {message}" if named else message, code="invalid_value", param=named or None)


def _place(loc: Sequence[str | int], fields: Any, *, is_missing: bool) -> list[str]:
    """Where an error lies in a request: pydantic's words but for the names of forms that were tried."""
    place: list[str] = []
    for part in loc:
        is_key = isinstance(fields, Mapping) and part in fields
        if is_key or (isinstance(fields, list) and isinstance(part, int)):
            place.append(str(part)[:80])
            fields = fields[part]
    return [*place, str(loc[-1])] if is_missing else place
