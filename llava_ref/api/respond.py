"""A job's items -> an HTTP answer: one JSON object, or server-sent events with comments while nothing else comes.

A client that goes, or that takes nothing for too long, ends the job.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import Receive, Send

from .body import ClientGone
from .errors import ApiError
from .limits import Limits
from .worker import ENDED, Job, Worker

EVENTS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}
PING = b": keep-alive\n\n"


def new_id() -> str:
    """Return an answer's id, as its `x-request-id` and the log have it."""
    return f"req_{uuid.uuid4().hex}"


def as_json(value: Any) -> bytes:
    """ASCII, so that half a surrogate pair in a text is still JSON; never NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


async def send_json(send: Send, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
    await send_bytes(send, status, as_json(value), "application/json", headers)


async def send_bytes(
    send: Send, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
) -> None:
    given = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": _raw(given)})
    await send({"type": "http.response.body", "body": body})


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def send_result(job: Job, worker: Worker, receive: Receive, send: Send) -> None:
    """The one object that the job gives. Raises what went wrong with it; ClientGone."""
    gone = asyncio.create_task(_until_gone(receive))
    try:
        item = await _first(asyncio.create_task(job.take()), gone)
        if isinstance(item, ApiError):
            raise item
        await send_json(send, 200, item)
    finally:
        worker.cancel(job)
        await _stop(gone)


async def send_events(job: Job, worker: Worker, limits: Limits, receive: Receive, send: Send) -> None:
    """All objects as events, the headers at once. An error is the last event. ClientGone."""
    gone = asyncio.create_task(_until_gone(receive))
    try:
        await send({"type": "http.response.start", "status": 200, "headers": _raw(EVENTS)})
        async for data in _frames(job, limits, gone):
            async with asyncio.timeout(limits.write_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except (TimeoutError, OSError):
        raise ClientGone from None
    finally:
        worker.cancel(job)
        await _stop(gone)


async def _frames(job: Job, limits: Limits, gone: asyncio.Task[None]) -> AsyncIterator[bytes]:
    waiting = asyncio.create_task(job.take())
    try:
        while True:
            done, _ = await asyncio.wait({waiting, gone}, timeout=limits.ping_seconds, return_when="FIRST_COMPLETED")
            if gone in done:
                raise ClientGone
            if not done:
                yield PING
                continue
            item = waiting.result()
            if item is ENDED:
                yield b"data: [DONE]\n\n"
                return
            yield b"data: " + as_json(item.body() if isinstance(item, ApiError) else item) + b"\n\n"
            if isinstance(item, ApiError):
                return
            waiting = asyncio.create_task(job.take())
    finally:
        waiting.cancel()


async def _first(wanted: asyncio.Task[Any], gone: asyncio.Task[None]) -> Any:
    try:
        done, _ = await asyncio.wait({wanted, gone}, return_when="FIRST_COMPLETED")
        if wanted in done:
            return wanted.result()
        raise ClientGone
    finally:
        wanted.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
