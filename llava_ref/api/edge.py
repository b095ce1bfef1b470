"""Around every request: its id, who may call, the key, and what becomes of errors. No body is read before that."""

import hmac
import logging
import time
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body import ClientGone
from .errors import ApiError, internal
from .metrics import Metrics
from .page import FILES
from .respond import new_id, send_json
from .targets import path_of
from .visitors import Visitors

log = logging.getLogger("llava_ref.server")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
OPEN = ("/health", "/healthz", *FILES)  # need no key
Raw = list[tuple[bytes, bytes]]


class Edge:
    """ASGI middleware; the outermost. `routes`: what an unknown path is told there is."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics, visitors: Visitors, routes: str) -> None:
        self._app, self._key, self._metrics = app, None if api_key is None else api_key.encode(), metrics
        self._visitors, self._routes = visitors, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": path_of(scope), "app": self._app}  # with an "app" Starlette raises 404 and 405
        body = _Body(scope, receive)
        answer = _Answer(send, body, self._visitors.headers(scope))
        self._metrics.active += 1
        try:
            await self._guarded(scope, body, answer)
        finally:
            self._metrics.active -= 1
            self._metrics.request(_route(scope), answer.status)
            log.info("%s %s %s %s %.3f s", answer.id, scope["method"], _route(scope), answer.status, answer.seconds)

    async def _guarded(self, scope: MutableMapping[str, Any], receive: Receive, answer: "_Answer") -> None:
        try:
            self._visitors.check(scope)
            if (headers := self._visitors.preflight(scope)) is not None:
                await answer.empty(headers)
                return
            self._admit(scope)
            await self._app(scope, receive, answer)
        except ClientGone:
            answer.status = answer.status or 499  # nginx's number for it; nobody sees it but the log
        except ApiError as error:
            await answer.error(error)
        except HTTPException as error:
            await answer.error(self._no_route(scope, error), error.headers or {})
        except Exception:
            log.exception("%s failed", answer.id)
            await answer.error(internal())

    def _admit(self, scope: Scope) -> None:
        if scope["path"] in OPEN or self._key is None:
            return
        if not any(hmac.compare_digest(given, self._key) for given in _keys(scope)):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def _no_route(self, scope: Scope, error: HTTPException) -> ApiError:
        """What exists instead."""
        if error.status_code == 404:
            problem = f"there is no {scope['path'][:100]!r} here. There are: {self._routes}"
            return ApiError(404, problem, code="not_found")
        if error.status_code == 405:
            allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            problem = f"{scope['method'][:20]!r} is not for {scope['path']}, which takes {allowed}"
            return ApiError(405, problem, code="method_not_allowed")
        return ApiError(error.status_code, error.detail, code="invalid_request")


class _Body:
    """`receive` that knows whether all of a request has been taken."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        lengths = [value for name, value in scope["headers"] if name == b"content-length" and value.strip(b"0")]
        self.whole = not lengths and not any(name == b"transfer-encoding" for name, _ in scope["headers"])

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.whole = True
        return message


class _Answer:
    """`send` with the headers that every answer has, that knows what has been sent."""

    def __init__(self, send: Send, body: _Body, headers: Raw) -> None:
        self._send, self._body, self._began = send, body, time.monotonic()
        self.id = new_id()
        self._headers = [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff"), *headers]
        self.status = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            close = [] if self._body.whole else [(b"connection", b"close")]  # the rest of the request is not used
            message = {**message, "headers": [*message.get("headers", []), *self._headers, *close]}
        await self._send(message)

    async def empty(self, headers: Raw) -> None:
        """A 200 without a body."""
        start = [*headers, (b"content-length", b"0")]
        await self({"type": "http.response.start", "status": 200, "headers": start})
        await self({"type": "http.response.body", "body": b""})

    async def error(self, error: ApiError, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Unless the answer has begun: then the connection is cut, which a client sees."""
        if not self.status:
            authenticate = {"www-authenticate": "Bearer"} if error.status == 401 else {}
            await send_json(self, error.status, error.body(), error.headers() | authenticate | dict(headers))


def _keys(scope: Scope) -> list[bytes]:
    """The keys that were given: `Authorization: Bearer` and `X-Api-Key`."""
    found = []
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
        elif name == b"x-api-key":
            found.append(value.strip())
    return found


def _route(scope: Scope) -> str:
    """The route's own path, never what a client wrote: for logs and metrics."""
    return getattr(scope.get("route"), "path", "unknown")
