"""The server's app in front of a service without a model, with one endpoint that does what its request says."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from afmoe_mlx.server.endpoint import Body, Endpoint, EventStream, Handled
from afmoe_mlx.server.engine.engine import EngineState
from afmoe_mlx.server.errors import RequestError
from afmoe_mlx.server.http.app import App
from afmoe_mlx.server.http.settings import Settings
from afmoe_mlx.server.page.page import File
from afmoe_mlx.server.question import Call

HEALTHY = EngineState(
    is_alive=True,
    is_loaded=True,
    running=2,
    waiting=1,
    cache_bytes=100,
    store_bytes=50,
    failures=0,
)


class Part(Body):
    """A piece of what is said."""

    text: str


class EchoBody(Body):
    """Say something again."""

    HINTS: ClassVar[Mapping[str, str]] = {"user": "nobody asks"}
    content: str | list[Part]
    model: str | None = None
    stream: bool = False
    n: int = Field(default=1, ge=1)
    pause: float = 0.0
    fails: str | None = None


class Echo(BaseModel):
    """What was said."""

    content: str
    owner: str


@dataclass
class Desk:
    """A service that keeps what its endpoint was asked."""

    name: str = "maker/tiny"
    created: int = 1_700_000_000
    context: int = 4096
    now: EngineState = HEALTHY
    asked: list[EchoBody] = field(default_factory=list)
    cancelled: int = 0

    def state(self) -> EngineState:
        return self.now

    def dies(self) -> None:
        self.now = replace(self.now, is_alive=False)


async def handle(desk: Desk, body: EchoBody, call: Call) -> Handled:
    desk.asked.append(body)
    if body.fails == "refused":
        raise RequestError(429, "too many", code="busy", retry_after=7)
    if body.fails == "broken":
        raise ValueError(f"the secret {body.content}")
    call.prompt_tokens, call.cached_tokens, call.completion_tokens = 10, 4, 3
    call.first_token, call.reason = 0.5, "stop"
    if body.stream:
        return EventStream(_events(desk, body), lambda: ": alive\n\n")
    await _pause(desk, body.pause)
    text = body.content if isinstance(body.content, str) else "".join(part.text for part in body.content)
    return {"content": text, "owner": call.owner}


async def _events(desk: Desk, body: EchoBody) -> AsyncIterator[str]:
    for letter in str(body.content):
        yield f"data: {letter}\n\n"
        await _pause(desk, body.pause)
        if body.fails == "midway":
            raise ValueError(f"the secret {body.content}")
    yield "data: [DONE]\n\n"


async def _pause(desk: Desk, seconds: float) -> None:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        desk.cancelled += 1
        raise


def error_body(error: RequestError) -> dict[str, Any]:
    return {"error": {"echo": error.message, "code": error.code, "param": error.param}}


ECHO = Endpoint("/v1/echo", EchoBody, Echo, handle, error_body)


def make_app(desk: Desk | None = None, *, page: Mapping[str, File] | None = None, **settings: Any) -> App:
    return App(desk or Desk(), [ECHO], Settings(**settings), page=page)  # type: ignore[arg-type]
