"""`App`: the ASGI app in front of a `Service`, from the checks of a request to its line in the log."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from ..endpoint import Endpoint, EventStream
from ..engine.engine import EngineState
from ..errors import RequestError
from ..openai.errors import error_body
from ..page.page import File
from ..question import Call, Service
from . import metrics, openapi
from .access import Access
from .exchange import Exchange, MethodError, error_headers
from .log import log_request
from .probe import NAME, Status
from .reading import ClientGoneError, check, check_model, read_json
from .settings import Settings
from .watching import until_gone

# The route of the page's files, which the log has no lines of.
PAGE = "/page"
# What is said of a client that went away, by the status that proxies use for it.
GONE = 499

_log = logging.getLogger(__name__)


class ToldService(Service, Protocol):
    """A `Service` that tells how it does."""

    def state(self) -> EngineState:
        """What its engine is doing; it may be asked in any thread, at any time."""
        ...


class App:
    """One model, by the protocols of `endpoints`, with /health, /metrics and /openapi.json.

    page: files by their paths, which need no key.
    """

    def __init__(
        self,
        service: ToldService,
        endpoints: Sequence[Endpoint],
        settings: Settings,
        *,
        page: Mapping[str, File] | None = None,
    ) -> None:
        self._service, self._endpoints, self._settings = service, endpoints, settings
        self._access = Access(settings)
        self._metrics = metrics.Metrics(service.state)
        self._forms = {endpoint.path: endpoint.error for endpoint in endpoints}
        own = {"/health": self._health, "/metrics": self._tell_metrics, "/openapi.json": self._describe}
        self._page = page or {}
        self._open = {"/health", *self._page}
        self._paths = {*self._forms, *own}
        routes = [Route(path, _Handler(path, handle), methods=["GET"]) for path, handle in own.items()]
        for endpoint in endpoints:
            answer = _Handler(endpoint.path, partial(self._answer, endpoint))
            routes.append(Route(endpoint.path, answer, methods=[endpoint.method]))
        for path, file in self._page.items():
            routes.append(Route(path, _Handler(PAGE, partial(self._show, file)), methods=["GET"]))
        self._router = Router(routes, redirect_slashes=False, default=_nothing_here)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever it is, and tell of it."""
        route = scope["path"] if scope["path"] in self._paths else "unknown"
        headers = Headers(scope=scope)
        call = Call(uuid4().hex, route)
        exchange = Exchange(scope, receive, send, call, self._access.cors_headers(headers))
        scope.update(app=self, exchange=exchange)
        try:
            await self._admit(exchange)
        except ClientGoneError:
            call.reason = "removed"
        except asyncio.CancelledError:
            call.reason = "stopped"
            raise
        except RequestError as error:
            await self._refuse(exchange, error)
        except Exception:
            _log.exception("request %s failed", call.id)
            message = f"internal error: the log has more of {call.id}"
            await self._refuse(exchange, RequestError(500, message, code="internal_error"))
        finally:
            call.seconds = time.perf_counter() - call.began
            status = GONE if exchange.status is None else exchange.status
            self._metrics.count(call, status)
            if call.route != PAGE or status >= 400:
                log_request(call, status, as_json=self._settings.log_json)

    async def _admit(self, exchange: Exchange) -> None:
        """Check who asks, then answer."""
        headers, scope = exchange.headers, exchange.scope
        if headers.get("upgrade", "").lower() == "websocket":
            raise RequestError(426, "no WebSocket here: ask by HTTP", code="upgrade_required")
        self._access.check_host(headers)
        self._access.check_origin(headers)
        self._access.check_site(headers, scope["method"])
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return await exchange.bytes(204, b"", {})
        if scope["path"] not in self._open:
            exchange.call.owner = self._access.owner(headers)
        try:
            await self._router(scope, exchange.receive, _unused)
        except HTTPException as error:
            allowed = sorted((error.headers or {})["Allow"].split(", "))
            raise MethodError(scope["method"], ", ".join(allowed)) from None
        return None

    async def _refuse(self, exchange: Exchange, error: RequestError) -> None:
        """Tell an error in the words of the protocol that was asked in; in a response that has begun, break it off."""
        exchange.call.reason = error.code or str(error.status)
        if exchange.status is None:
            form = self._forms.get(exchange.scope["path"], error_body)
            await exchange.json(error.status, form(error), error_headers(error))

    async def _answer(self, endpoint: Endpoint, exchange: Exchange) -> None:
        settings = self._settings
        if endpoint.method == "GET":
            fields: dict[str, Any] = exchange.scope["path_params"]
        else:
            fields = await read_json(
                exchange.headers, exchange.receive, max_body=settings.max_body, timeout=settings.read_timeout
            )
        body = check(endpoint.body, fields, ignore_unknown=settings.ignore_unknown)
        if not settings.any_model_name:
            check_model(body, self._service.name)

        async def respond() -> None:
            handled = await endpoint.handle(self._service, body, exchange.call)
            if isinstance(handled, EventStream):
                await exchange.stream(handled)
            else:
                await exchange.json(200, handled)

        with self._metrics.running():
            await until_gone(exchange.receive, respond())

    async def _health(self, exchange: Exchange) -> None:
        state = self._service.state()
        status: Status = "ok" if state.is_alive and state.is_loaded else "unloaded" if state.is_alive else "dead"
        await exchange.json(200 if state.is_alive else 503, {"status": status, "server": NAME})

    async def _tell_metrics(self, exchange: Exchange) -> None:
        await exchange.bytes(200, self._metrics.text(), {"content-type": metrics.CONTENT_TYPE})

    async def _show(self, file: File, exchange: Exchange) -> None:
        await exchange.bytes(*file.response(exchange.headers))

    async def _describe(self, exchange: Exchange) -> None:
        await exchange.json(200, openapi.document(self._endpoints, has_keys=bool(self._settings.keys)))


class _Handler:
    """A route's ASGI app, that is handed the exchange."""

    def __init__(self, path: str, handle: Callable[[Exchange], Awaitable[None]]) -> None:
        self._path, self._handle = path, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        exchange.call.route = self._path
        await self._handle(exchange)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise RequestError(404, f"there is nothing at {scope['path'][:200]}: see /openapi.json", code="not_found")


async def _unused(message: Any) -> None:
    raise AssertionError("the exchange sends")
