"""`Endpoint`: a path and what answers it; `Body`: the fields of a request, of which unknown ones are told."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from .errors import RequestError
from .question import Call, Service


class Body(BaseModel):
    """The fields of a request. What is none of them is in `model_extra`: refused by name, unless it is a hint.

    HINTS: fields that change no answer, each with what becomes of it; they are accepted and ignored.
    """

    model_config = ConfigDict(extra="allow", strict=False)
    HINTS: ClassVar[Mapping[str, str]] = {}


@dataclass(frozen=True)
class EventStream:
    """Server-sent events, each as its whole text ("data: …\\n\\n"). Errors are among them, and so is the end."""

    events: AsyncIterator[str]
    alive: Callable[[], str]
    """An event, or a comment, that this protocol's clients take for a sign of life."""


Handled = dict[str, Any] | EventStream


@dataclass(frozen=True)
class Endpoint:
    """A path, what its requests are made of and what answers them."""

    path: str
    body: type[Body]
    answer: type[BaseModel]
    """The answer's form, for the OpenAPI document."""
    handle: Callable[[Service, Any, Call], Awaitable[Handled]]
    """(service, body, call); RequestError where there is no answer."""
    error: Callable[[RequestError], dict[str, Any]]
    """The body of an error in this protocol."""
    method: str = "POST"
    """Of a GET, `body` has the parameters of the path."""
