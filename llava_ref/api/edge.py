"""ASGI middleware around every request: request id, access rules, API key, error responses, log and metrics.

All checks are made before any of the body is read."""

import hmac
import logging
import time
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body import ClientDisconnected
from .docs import PLACE
from .errors import ApiError, internal
from .metrics import Metrics
from .page import FILES
from .respond import new_id, send_json
from .targets import path_of
from .visitors import AccessRules

log = logging.getLogger("llava_ref.server")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
PUBLIC_PATHS = ("/health", "/healthz", "/openapi.json", *FILES)  # served without the API key
RawHeaders = list[tuple[bytes, bytes]]


class Edge:
    """The outermost ASGI application. `routes`: the list of routes that the 404 for an unknown path names."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics, access: AccessRules, routes: str) -> None:
        self._app, self._key, self._metrics = app, None if api_key is None else api_key.encode(), metrics
        self._access, self._routes = access, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": path_of(scope), "app": self._app}  # Starlette raises 404 and 405 only if "app" is set
        body = _TrackedReceive(scope, receive)
        answer = _TrackedSend(send, body, self._access.headers(scope))
        self._metrics.active += 1
        try:
            await self._answer(scope, body, answer)
        finally:
            self._metrics.active -= 1
            self._metrics.request(_route(scope), answer.status)
            log.info("%s %s %s %s %.3f s", answer.id, scope["method"], _route(scope), answer.status, answer.seconds)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, answer: "_TrackedSend") -> None:
        try:
            self._access.check(scope)
            if (headers := self._access.preflight(scope)) is not None:
                await answer.send_empty(headers)
                return
            self._check_key(scope)
            await self._app(scope, receive, answer)
        except ClientDisconnected:
            answer.status = answer.status or 499  # nginx's status for a client disconnect; only the log shows it
        except ApiError as error:
            await answer.send_error(error)
        except HTTPException as error:
            await answer.send_error(self._routing_error(scope, error), error.headers or {})
        except Exception:
            log.exception("%s failed", answer.id)
            await answer.send_error(internal())

    def _check_key(self, scope: Scope) -> None:
        public = scope["path"] in PUBLIC_PATHS or scope["path"].startswith(PLACE)
        if public or self._key is None:
            return
        if not any(hmac.compare_digest(given, self._key) for given in _given_keys(scope)):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def _routing_error(self, scope: Scope, error: HTTPException) -> ApiError:
        """Turn Starlette's 404 or 405 into an error that names the existing routes or the allowed methods."""
        if error.status_code == 404:
            problem = f"no route {scope['path'][:100]!r}; the routes are: {self._routes}"
            return ApiError(404, problem, code="not_found")
        if error.status_code == 405:
            allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            problem = f"{scope['path']} does not accept {scope['method'][:20]!r}, expected one of {allowed}"
            return ApiError(405, problem, code="method_not_allowed")
        return ApiError(error.status_code, error.detail, code="invalid_request")


class _TrackedReceive:
    """Wraps `receive`; `complete` says whether the whole request has been received."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        lengths = [value for name, value in scope["headers"] if name == b"content-length" and value.strip(b"0")]
        self.complete = not lengths and not any(name == b"transfer-encoding" for name, _ in scope["headers"])

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.complete = True
        return message


class _TrackedSend:
    """Wraps `send`: adds the headers that every answer has, and keeps the status that was sent (0: none yet)."""

    def __init__(self, send: Send, body: _TrackedReceive, headers: RawHeaders) -> None:
        self._send, self._body, self._start = send, body, time.monotonic()
        self.id = new_id()
        self._headers = [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff"), *headers]
        self.status = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            close = [] if self._body.complete else [(b"connection", b"close")]  # the rest of the request is unread
            message = {**message, "headers": [*message.get("headers", []), *self._headers, *close]}
        await self._send(message)

    async def send_empty(self, headers: RawHeaders) -> None:
        """Send status 200 with these headers and no body."""
        start = [*headers, (b"content-length", b"0")]
        await self({"type": "http.response.start", "status": 200, "headers": start})
        await self({"type": "http.response.body", "body": b""})

    async def send_error(self, error: ApiError, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Send an error, unless an answer has begun: then the client only notices that the connection is cut."""
        if not self.status:
            authenticate = {"www-authenticate": "Bearer"} if error.status == 401 else {}
            await send_json(self, error.status, error.body(), error.headers() | authenticate | dict(headers))


def _given_keys(scope: Scope) -> list[bytes]:
    """Return the API keys of a request, from its headers `Authorization: Bearer` and `X-Api-Key`."""
    keys = []
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
        elif name == b"x-api-key":
            keys.append(value.strip())
    return keys


def _route(scope: Scope) -> str:
    """Return the path pattern of the matched route for log and metrics; it contains nothing that the client wrote."""
    return getattr(scope.get("route"), "path", "unknown")
