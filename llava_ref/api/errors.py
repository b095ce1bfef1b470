"""What goes wrong with a request, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` and a status.

`param` is the place in the request's JSON, as in `messages[0].content[1].image_url.url`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ImageError, LlavaError, NumericsError, PromptError, printable

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
STEP = re.compile(r"\.?([A-Za-z_][A-Za-z0-9_]*)|\[([0-9]{1,9})\]")
NOTHING = object()


class ApiError(Exception):
    """An answer that is not a success. `retry_after`: seconds after which trying again makes sense; None: never."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def kind(self) -> str:
        return KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        message, param = printable(str(self)), None if self.param is None else printable(self.param, 300)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Both OpenAI SDKs retry 408, 409, 429 and 5xx by themselves unless they are told not to."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"x-should-retry": "true", "retry-after": str(self.retry_after)}


def refuse(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A 400: the request has to be changed."""
    return ApiError(400, message, param=param, code=code)


def internal() -> ApiError:
    """A bug of ours. What it was stands in the server's log and not in the answer."""
    return ApiError(500, "something went wrong inside the server", code="internal_error")


def from_library(error: LlavaError, body: Any, default: str | None) -> ApiError:
    """What the library refused, with the place in `body` it was about; `default` where it was about none."""
    if isinstance(error, NumericsError):
        return ApiError(500, f"the model gave no numbers: {error.field}: {error.problem}", code="model_error")
    return ApiError(400, str(error), param=json_path(body, error, default), code=_code(error))


@contextmanager
def library_errors(body: Any, default: str) -> Iterator[None]:
    """What the library refuses inside the block is an ApiError."""
    try:
        yield
    except LlavaError as error:
        raise from_library(error, body, default) from None


def _code(error: LlavaError) -> str:
    if isinstance(error, ImageError) and error.problem.startswith("DecompressionBomb"):
        return "image_too_large"  # Pillow's own limit, which is above ours and comes first
    if isinstance(error, ImageError):
        return {"format": "unsupported_image_format", "size": "image_too_large"}.get(error.field, "invalid_image")
    if isinstance(error, PromptError) and error.field == "tokens" and "context" in error.problem:
        return "context_length_exceeded"
    if isinstance(error, PromptError) and error.problem == "not supported here":
        return "unsupported_parameter"
    return "invalid_value"


def json_path(body: Any, error: LlavaError, default: str | None) -> str | None:
    """`error.where` if that is a place in `body`. Of an object it is the field that is wrong, present or not."""
    value = value_at(body, error.where)
    if value is NOTHING:
        parent = error.where.rpartition(".")[0]
        return error.where if parent and isinstance(value_at(body, parent), dict) else default
    return f"{error.where}.{error.field}" if isinstance(value, dict) else error.where


def value_at(body: Any, path: str) -> Any:
    """What stands at a path as in `messages[0].content`; NOTHING if there is no such place."""
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
