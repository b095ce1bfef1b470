"""The bytes of a request -> JSON values, within limits that hold while it is read."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from starlette.requests import Request

from .encoding import Decoder, decoder
from .errors import ApiError, refuse
from .limits import MAX_DEPTH, MAX_ITEMS, Budget, Limits

ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")  # the only way that half a surrogate pair comes in
LONE = re.compile("[\ud800-\udfff]")


class ClientGone(Exception):
    """Nobody waits for an answer."""


@asynccontextmanager
async def read_body(request: Request, limits: Limits, budget: Budget) -> AsyncIterator[bytearray]:
    """All of it, counted as it comes; its bytes are taken from `budget` until the block ends.

    ApiError 413, 408, 415 and 429; ClientGone."""
    _check_type(request.headers.get("content-type"))
    decode = decoder(request.headers.getlist("content-encoding"))
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body:
        raise _too_large(limits)
    body = bytearray()
    try:
        await _read_in_time(body, request, decode, limits, budget)
        yield body
    finally:
        budget.give_back(len(body))


async def _read_in_time(body: bytearray, request: Request, decode: Decoder, limits: Limits, budget: Budget) -> None:
    try:
        async with asyncio.timeout(limits.read_seconds):
            await _read_into(body, request, decode, limits, budget)
    except TimeoutError:
        raise ApiError(408, f"the body took more than {limits.read_seconds:g} s", code="timeout") from None


async def _read_into(body: bytearray, request: Request, decode: Decoder, limits: Limits, budget: Budget) -> None:
    """Counts what comes and what it becomes: both are within `limits.max_body`."""
    received = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        received += len(chunk)
        for piece in decode.pieces(chunk):
            if max(received, len(body) + len(piece)) > limits.max_body:
                raise _too_large(limits)
            budget.take(len(piece))
            body += piece
            await asyncio.sleep(0)  # others have their turn
        if not message.get("more_body", False):
            decode.end()
            return


def _check_type(content_type: str | None) -> None:
    """A browser sends other types to any host without asking it first, so they are refused."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body is over {limits.max_body:,} bytes", code="request_too_large")


def parse_json(body: bytes | bytearray) -> Any:
    """ApiError 400 for what is not JSON, has NaN or half a surrogate pair in it, or is nested or cut into pieces beyond
    the limits. A byte order mark before it is no part of it (RFC 8259, 8.1)."""
    if sum(body.count(sign) for sign in b",[{") > MAX_ITEMS:
        raise refuse(None, f"over {MAX_ITEMS:,} commas and brackets", "invalid_json")
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise refuse(None, "the body is not UTF-8", "invalid_json") from None
    except RecursionError:
        raise refuse(None, f"nested more than {MAX_DEPTH} deep", "invalid_json") from None
    except ValueError as error:  # also a number of more than 4,300 digits
        raise refuse(None, f"the body is not JSON: {error}", "invalid_json") from None
    _check_depth(value)
    if ESCAPED.search(body):
        _check_text(value, "")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        children = (child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise refuse(None, f"nested more than {MAX_DEPTH} deep", "invalid_json")


def _check_text(value: Any, where: str) -> None:
    """All strings, names of fields too. `where`: the place of `value`."""
    if isinstance(value, str) and (lone := LONE.search(value)):
        problem = f"{where or 'a name'}: character {lone.start()}: half of a surrogate pair, which is not text"
        raise refuse(where or None, problem)
    if isinstance(value, dict):
        for name, item in value.items():
            _check_text(name, where)
            _check_text(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_text(item, f"{where}[{i}]")
