"""Reads a request body and parses it as JSON. Size and time limits are enforced while it is read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request

from ..json_text import JsonError, parse_json_text
from .encoding import ContentDecoder, content_decoder
from .errors import ApiError, refuse
from .limits import Allowance, Limits


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


def parse_json(body: bytes | bytearray, name: str = "body") -> Any:
    """Parse a body as JSON, within the limits of `json_text`. `name`: what an error calls it. Raises ApiError 400."""
    try:
        return parse_json_text(body, f"the {name}")
    except JsonError as error:
        raise refuse(
            error.where or None, str(error), "invalid_json" if error.where is None else "invalid_value"
        ) from None
