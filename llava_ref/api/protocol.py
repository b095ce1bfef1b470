"""Extends uvicorn's HTTP/1.1 protocol by what it lacks:

- a timeout for a request's header and a write timeout for clients that stop reading,
- a limit on connections, beyond which the oldest waiting one is closed,
- answers that reach a client which is still sending or has half-closed its connection,
- errors in OpenAI's form.

`GracefulServer` extends uvicorn's server by a shutdown that loses no answer.
"""

import asyncio
import signal
import socket
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError
from .limits import MAX_CONNECTIONS, MAX_DRAINED, MAX_STALLED, Limits
from .respond import as_json, new_id
from .worker import Worker

PROBE_SECONDS = 1.0  # interval of the probes whether a half-closed client is still connected
WRITE_BUFFER = 2**14  # bytes buffered for a client that does not read
SEND_BUFFER = 2**15  # bytes buffered by the system; Linux doubles this number


class DrainingTransport:
    """Wraps a transport so that `close` goes to the protocol, which first reads the rest of the request."""

    def __init__(self, inner: asyncio.Transport, protocol: "PatientProtocol") -> None:
        self._inner, self._protocol = inner, protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None:
        self._protocol.finish()

    def is_closing(self) -> bool:
        return self._protocol.draining or self._inner.is_closing()


class PatientProtocol(H11Protocol):
    """One connection. uvicorn creates the instances, from the subclass of `patient_protocol`, which has `limits`."""

    limits: Limits
    draining = False
    inner: asyncio.Transport
    waiting_since = 0.0
    """When it began to wait for a request, or for its client to read an answer; the oldest is closed first."""
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _drain_timer: asyncio.TimerHandle | None = None
    _probe_timer: asyncio.TimerHandle | None = None
    _half_closed_at: float | None = None  # when the client closed its side
    _drain_remaining = MAX_DRAINED

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.inner, self.waiting_since = transport, self.loop.time()
        _limit_buffers(transport)
        super().connection_made(cast(asyncio.Transport, DrainingTransport(transport, self)))
        if len(self._other_connections()) >= most_connections():
            self._close_oldest()
        self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer, self._drain_timer, self._probe_timer):
            _cancel_timer(timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.draining:
            self._drain(len(data))
            return
        if self._header_timer is None and not self._answering():
            self._wait_for_header()
        super().data_received(data)
        if self._answering():
            self._header_timer = _cancel_timer(self._header_timer)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open, which it does to answer a complete request.

        A client that disconnected altogether looks the same until something is written to it, so it is probed."""
        if self.draining or not self._request_complete():
            return False
        self._half_closed_at = self.loop.time()
        self._probe_timer = self.loop.call_later(PROBE_SECONDS, self._probe_client)
        return True

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        super().on_response_complete()
        if self._half_closed_at is not None and not self._answering() and not self.transport.is_closing():
            self.finish()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.waiting_since = self.loop.time()
        self._write_timer = _cancel_timer(self._write_timer) or self.loop.call_later(
            self.limits.write_seconds, self.inner.abort
        )
        stalled = [other for other in self._other_connections() if other.flow.write_paused]
        if len(stalled) >= MAX_STALLED:
            min(stalled, key=lambda other: other.waiting_since).inner.abort()

    def resume_writing(self) -> None:
        self._write_timer = _cancel_timer(self._write_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        body = as_json(ApiError(400, "the request is not HTTP", code="invalid_http").body())
        headers = [("content-type", "application/json"), ("connection", "close"), ("x-should-retry", "false")]
        headers.append(("x-request-id", new_id()))
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.inner.write(self.conn.send(event) or b"")
        self.finish()

    def finish(self) -> None:
        """Close the connection, but first read what the client is still sending, within limits.

        Unread bytes would cause a reset, and the client could lose an answer that it has not read yet."""
        if self.draining or self.inner.is_closing() or not self._client_sending():
            self.inner.close()
            return
        self.draining = True
        self._drain_timer = self.loop.call_later(self.limits.read_seconds, self.inner.abort)
        if self.inner.can_write_eof():
            self.inner.write_eof()
        self.flow.resume_reading()

    def _drain(self, count: int) -> None:
        self._drain_remaining -= count
        if self._drain_remaining < 0:
            self.inner.abort()

    def _client_sending(self) -> bool:
        """Return whether more of a request is expected, or has arrived and is unread."""
        if self._half_closed_at is not None:
            return False
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR) or bool(self.conn.trailing_data[0])

    def _wait_for_header(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.read_seconds, self.inner.abort)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _request_complete(self) -> bool:
        """Return whether a complete request is being answered."""
        return self._answering() and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)

    def _other_connections(self) -> "list[PatientProtocol]":
        connections = [
            other for other in self.connections if isinstance(other, PatientProtocol) and not other.inner.is_closing()
        ]
        return [other for other in connections if other is not self]

    def _close_oldest(self) -> None:
        """Close the oldest connection that waits for its client, so that half-sent requests do not block new ones."""
        waiting = [
            other for other in self._other_connections() if not other._request_complete() or other.flow.write_paused
        ]
        min(waiting, key=lambda other: other.waiting_since, default=self).inner.abort()

    def _probe_client(self) -> None:
        """Write something that does not change the answer; the second such write fails if the client disconnected.

        Before the answer this is 100 (Continue), which may be sent any number of times (RFC 9110, 15.2). HTTP/1.0 does
        not have it, so there the connection is closed after `limits.ping_seconds`. Within a stream it is the scope's
        `probe`, a comment that may stand between two events."""
        self._probe_timer = self.loop.call_later(PROBE_SECONDS, self._probe_client)
        if not self._answering() or self.flow.write_paused:
            return
        probe = self.cycle.scope["state"].get("probe")
        if self.cycle.response_started and probe:
            self.inner.write(self.conn.send(h11.Data(data=probe)) or b"")
        elif not self.cycle.response_started and self.cycle.scope["http_version"] == "1.1":
            interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.inner.write(self.conn.send(interim) or b"")
        elif (
            not self.cycle.response_started
            and self.loop.time() - (self._half_closed_at or 0) > self.limits.ping_seconds
        ):
            self.inner.abort()


def patient_protocol(limits: Limits) -> type[PatientProtocol]:
    """Return the protocol class for `limits`; uvicorn takes a class, not an instance."""
    return type("PatientProtocol", (PatientProtocol,), {"limits": limits})


def most_connections() -> int:
    """Return MAX_CONNECTIONS, or half of the files that the process may open if that is less."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


def _limit_buffers(transport: asyncio.Transport) -> None:
    """Keep the buffers small, so that a client which does not read is noticed before megabytes have been sent."""
    transport.set_write_buffer_limits(high=WRITE_BUFFER)
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def _cancel_timer(timer: asyncio.TimerHandle | None) -> Any:
    """Cancel a timer if there is one; returns None, for the attribute that held it."""
    if timer is not None:
        timer.cancel()
    return None


class GracefulServer(uvicorn.Server):
    """Shuts down gracefully, with exit code 0 on SIGTERM and 130 on Ctrl-C.

    New and waiting requests are refused, and the running answer has `limits.grace_seconds` to finish. A second signal
    ends the server at once."""

    def __init__(self, config: uvicorn.Config, worker: Worker, limits: Limits) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._worker, self._limits = worker, limits
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.exit_code = 130 if sig == signal.SIGINT else 0
        self.force_exit = self.should_exit
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._worker.drain, self._limits.grace_seconds)
