"""Sends the items of a job as an HTTP answer: one JSON object, or server-sent events with keep-alive comments.

A client that disconnects or stops reading cancels the job.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import Receive, Send

from .body import ClientDisconnected
from .errors import ApiError
from .limits import PROGRESS_SECONDS, Limits
from .worker import ENDED, ModelJob, Worker

EVENTS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}
PING = b": keep-alive\n\n"


def new_id() -> str:
    """Return a new request id, for the header `x-request-id` and the log."""
    return f"req_{uuid.uuid4().hex}"


def as_json(value: Any) -> bytes:
    """Serialise as ASCII, so that half a surrogate pair in a text is still valid JSON. Raises ValueError for NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


async def send_json(send: Send, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
    await send_bytes(send, status, as_json(value), "application/json", headers)


async def send_bytes(
    send: Send, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
) -> None:
    all_headers = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": _raw(all_headers)})
    await send({"type": "http.response.body", "body": body})


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def send_result(job: ModelJob, worker: Worker, receive: Receive, send: Send) -> None:
    """Send the single object of a job as JSON. Raises the job's ApiError, and ClientDisconnected."""
    disconnected = asyncio.create_task(_until_disconnect(receive))
    try:
        item = await _first_item(asyncio.create_task(job.take()), disconnected)
        if isinstance(item, ApiError):
            raise item
        await send_json(send, 200, item)
    finally:
        worker.cancel(job)
        await _stop(disconnected)


class EventForm:
    """Turns the objects of a stream into server-sent events, here as chats and completions have them."""

    end = b"data: [DONE]\n\n"

    def event(self, item: dict[str, Any] | ApiError) -> bytes:
        return b"data: " + as_json(item.body() if isinstance(item, ApiError) else item) + b"\n\n"


async def send_events(
    job: ModelJob, form: EventForm, worker: Worker, limits: Limits, receive: Receive, send: Send
) -> None:
    """Send the objects of a job as events, the headers at once; an error is the last event.

    Raises ClientDisconnected, also if the client does not read for `limits.write_seconds`."""
    disconnected = asyncio.create_task(_until_disconnect(receive))
    try:
        await send({"type": "http.response.start", "status": 200, "headers": _raw(EVENTS)})
        async for data in _frames(job, form, worker, limits, disconnected):
            async with asyncio.timeout(limits.write_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except (TimeoutError, OSError):
        raise ClientDisconnected from None
    finally:
        worker.cancel(job)
        await _stop(disconnected)


async def _frames(
    job: ModelJob, form: EventForm, worker: Worker, limits: Limits, disconnected: asyncio.Task[None]
) -> AsyncIterator[bytes]:
    waiting = asyncio.create_task(job.take())
    try:
        while True:
            progress = None if job.progress is None or job.progress.ended else job.progress
            seconds = limits.ping_seconds if progress is None else PROGRESS_SECONDS
            done, _ = await asyncio.wait({waiting, disconnected}, timeout=seconds, return_when="FIRST_COMPLETED")
            if disconnected in done:
                raise ClientDisconnected
            if not done:
                yield PING if progress is None else form.event(progress.news(worker.ahead(job)))
                continue
            item = waiting.result()
            if item is ENDED:
                yield form.end
                return
            yield form.event(item)
            if isinstance(item, ApiError):
                return
            waiting = asyncio.create_task(job.take())
    finally:
        waiting.cancel()


async def _first_item(wanted: asyncio.Task[Any], disconnected: asyncio.Task[None]) -> Any:
    try:
        done, _ = await asyncio.wait({wanted, disconnected}, return_when="FIRST_COMPLETED")
        if wanted in done:
            return wanted.result()
        raise ClientDisconnected
    finally:
        wanted.cancel()


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
