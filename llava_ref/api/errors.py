"""Errors of requests, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` and a status.

`param` is the place in the request's JSON, as in `messages[0].content[1].image_url.url`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ..errors import Code, LlavaError, NumericsError, printable

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
STEP = re.compile(r"\.?([A-Za-z_][A-Za-z0-9_]*)|\[([0-9]{1,9})\]")
NOTHING = object()
ApiCode = Literal[
    Code,  # the library's: status 400, but 500 for model_error
    # 400
    "invalid_json",
    "missing_required_parameter",
    "unsupported_value",
    "invalid_model",
    "model_not_loaded",  # 409 if it was to be unloaded
    "invalid_content_encoding",
    "invalid_http",
    "invalid_request",  # any other status that Starlette answers with
    # 401, 403
    "invalid_api_key",
    "path_not_allowed",
    "record_not_allowed",
    "host_not_allowed",
    "origin_not_allowed",
    # 404, 405, 408, 409
    "not_found",
    "model_not_found",
    "method_not_allowed",
    "timeout",
    "model_already_loaded",
    # 413, 415, 429
    "request_too_large",
    "unsupported_media_type",
    "unsupported_content_encoding",
    "server_busy",
    # 500, 503
    "internal_error",
    "record_failed",
    "shutting_down",
    "worker_dead",
    "model_loading",
    "load_failed",
]
"""The codes of `ApiError`: all there are."""


class ApiError(Exception):
    """Report an answer that is no success. `retry_after`: seconds after which a retry makes sense; None: never."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: ApiCode, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def kind(self) -> str:
        """Return OpenAI's type of the error."""
        return KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON."""
        message, param = printable(str(self)), None if self.param is None else printable(self.param, 300)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return headers that stop OpenAI's SDKs, which otherwise retry 408, 409, 429 and 5xx by themselves."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"x-should-retry": "true", "retry-after": str(self.retry_after)}


def refuse(param: str | None, message: str, code: ApiCode = "invalid_value") -> ApiError:
    """Return a 400: the request has to be changed."""
    return ApiError(400, message, param=param, code=code)


def internal() -> ApiError:
    """Return a 500 for a bug of this program, which is described in the server's log and not in the answer."""
    return ApiError(500, "something went wrong inside the server", code="internal_error")


def from_library(error: LlavaError, body: Any, default: str | None) -> ApiError:
    """Convert a LlavaError to an ApiError whose `param` is its path in `body`, or `default` if it has none there."""
    if isinstance(error, NumericsError):
        return ApiError(500, f"the model gave no numbers: {error.field}: {error.problem}", code=error.code)
    return ApiError(400, str(error), param=json_path(body, error, default), code=error.code)


@contextmanager
def library_errors(body: Any, default: str) -> Iterator[None]:
    """Raise every LlavaError of the block as an ApiError."""
    try:
        yield
    except LlavaError as error:
        raise from_library(error, body, default) from None


def json_path(body: Any, error: LlavaError, default: str | None) -> str | None:
    """Return `error.where` if `body` has such a place, with the field if that is an object; otherwise `default`."""
    value = value_at(body, error.where)
    if value is NOTHING:
        parent = error.where.rpartition(".")[0]
        return error.where if parent and isinstance(value_at(body, parent), dict) else default
    return f"{error.where}.{error.field}" if isinstance(value, dict) else error.where


def value_at(body: Any, path: str) -> Any:
    """Return the value at a path as in `messages[0].content`; NOTHING if there is no such place."""
    value, at = body, 0
    while at < len(path):
        step = STEP.match(path, at)
        if step is None:
            return NOTHING
        key, index = step[1], int(step[2] or 0)
        if key is not None and isinstance(value, dict) and key in value:
            value = value[key]
        elif key is None and isinstance(value, list) and index < len(value):
            value = value[index]
        else:
            return NOTHING
        at = step.end()
    return value
