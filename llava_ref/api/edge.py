"""Around every request: its id, the key, and what becomes of errors. No body is read before the key fits."""

import hmac
import logging
import time
import uuid
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body import ClientGone
from .errors import ApiError, internal
from .limits import MAX_CONNECTIONS
from .metrics import Metrics
from .page import FILES
from .respond import send_json

log = logging.getLogger("llava_ref.server")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
OPEN = ("/health", "/healthz", *FILES)  # need no key


class Edge:
    """ASGI middleware; the outermost but for CORS."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics) -> None:
        self._app, self._key, self._metrics = app, None if api_key is None else api_key.encode(), metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path.lower().startswith("/inferences/"):  # Nitro's clients write loadModel and loadmodel
            path = path.lower()
        scope = {**scope, "path": path, "app": self._app}  # with an "app" Starlette raises 404 and 405
        answer = _Answer(send)
        self._metrics.active += 1
        try:
            await self._guarded(scope, receive, answer)
        finally:
            self._metrics.active -= 1
            self._metrics.request(_route(scope), answer.status)
            log.info("%s %s %s %s %.3f s", answer.id, scope["method"], _route(scope), answer.status, answer.seconds)

    async def _guarded(self, scope: MutableMapping[str, Any], receive: Receive, answer: "_Answer") -> None:
        try:
            self._admit(scope)
            await self._app(scope, receive, answer)
        except ClientGone:
            answer.status = answer.status or 499  # nginx's number for it; nobody sees it but the log
        except ApiError as error:
            await answer.error(error)
        except HTTPException as error:
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
            await answer.error(ApiError(error.status_code, error.detail, code=code), error.headers or {})
        except Exception:
            log.exception("%s failed", answer.id)
            await answer.error(internal())

    def _admit(self, scope: Scope) -> None:
        if scope["path"] in OPEN:
            return
        if self._metrics.active > MAX_CONNECTIONS:
            raise ApiError(503, "too many connections", code="server_busy", retry_after=2)
        if self._key is not None and not any(hmac.compare_digest(given, self._key) for given in _keys(scope)):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")


class _Answer:
    """`send` with the request id added, that knows what has been sent."""

    def __init__(self, send: Send) -> None:
        self._send, self._began = send, time.monotonic()
        self.id = f"req_{uuid.uuid4().hex}"
        self.status = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", []), *headers]}
        await self._send(message)

    async def error(self, error: ApiError, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Unless the answer has begun: then the connection is cut, which a client sees."""
        if not self.status:
            close = {"connection": "close"} if error.status in (408, 413) else {}  # the rest of the body is not read
            authenticate = {"www-authenticate": "Bearer"} if error.status == 401 else {}
            await send_json(self, error.status, error.body(), error.headers() | close | authenticate | dict(headers))


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
