"""Reads a request body and parses it as JSON. Size and time limits are enforced while it is read."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from starlette.requests import Request

from .encoding import ContentDecoder, content_decoder
from .errors import ApiError, refuse
from .limits import MAX_DEPTH, MAX_ITEMS, Allowance, Limits

ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # UTF-8 has no surrogates: one can only arrive as an escape
SURROGATE = re.compile("[\ud800-\udfff]")


class ClientDisconnected(Exception):
    """The client closed the connection, so no answer is needed."""


@asynccontextmanager
async def read_body(request: Request, limits: Limits, allowance: Allowance) -> AsyncIterator[bytearray]:
    """Read the whole body, counting its bytes as they arrive and taking them from `allowance` until the block ends.

    Raises ApiError 408, 413, 415 or 429, and ClientDisconnected."""
    _check_type(request.headers.get("content-type"))
    decode = content_decoder(request.headers.getlist("content-encoding"))
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body:
        raise _too_large(limits)
    body = bytearray()
    try:
        await _read_in_time(body, request, decode, limits, allowance)
        yield body
    finally:
        allowance.give_back(len(body))


async def _read_in_time(
    body: bytearray, request: Request, decode: ContentDecoder, limits: Limits, allowance: Allowance
) -> None:
    try:
        async with asyncio.timeout(limits.read_seconds):
            await _read_into(body, request, decode, limits, allowance)
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {limits.read_seconds:g} s", code="timeout") from None


async def _read_into(
    body: bytearray, request: Request, decode: ContentDecoder, limits: Limits, allowance: Allowance
) -> None:
    """Append the decoded body to `body`; both the received and the decoded size are within `limits.max_body`."""
    received = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        received += len(chunk)
        for piece in decode.pieces(chunk):
            if max(received, len(body) + len(piece)) > limits.max_body:
                raise _too_large(limits)
            allowance.take(len(piece))
            body += piece
            await asyncio.sleep(0)  # let other requests run
        if not message.get("more_body", False):
            decode.end()
            return


def _check_type(content_type: str | None) -> None:
    """Refuse all types but JSON: a browser sends some others to any host without a preflight. Raises ApiError 415."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body exceeds {limits.max_body:,} bytes", code="request_too_large")


def parse_json(body: bytes | bytearray) -> Any:
    """Parse a body as JSON, ignoring a byte order mark (RFC 8259, 8.1).

    Raises ApiError 400 for anything that is not JSON, contains NaN, infinity or half a surrogate pair, or is nested
    deeper or has more items than the limits allow."""
    if sum(body.count(sign) for sign in b",[{") > MAX_ITEMS:
        raise refuse(None, f"more than {MAX_ITEMS:,} commas and brackets", "invalid_json")
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise refuse(None, "the body is not UTF-8", "invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # also a number of more than 4,300 digits
        raise refuse(None, f"the body is not JSON: {error}", "invalid_json") from None
    _check_depth(value)
    if ESCAPED_SURROGATE.search(body):
        _check_text(value, "")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        children = (child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ApiError:
    return refuse(None, f"nested more than {MAX_DEPTH} levels deep", "invalid_json")


def _check_text(value: Any, where: str) -> None:
    """Check all strings in `value`, field names included, for surrogates. `where`: the JSON path of `value`."""
    if isinstance(value, str) and (lone := SURROGATE.search(value)):
        problem = f"{where or 'a name'}: character {lone.start()}: half of a surrogate pair, which is not text"
        raise refuse(where or None, problem)
    if isinstance(value, dict):
        for name, item in value.items():
            _check_text(name, where)
            _check_text(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_text(item, f"{where}[{i}]")
