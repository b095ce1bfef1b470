"""uvicorn's HTTP/1.1 protocol with what it leaves out: time for a request's header, an end for clients that take
nothing, room for new connections, answers that reach a client which is still sending or has half closed, and errors
in our own form. And its server with an end that loses no answer."""

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

ASK_SECONDS = 1.0  # between two looks at whether a client that ended its side is still there
WRITE_BUFFER = 2**14  # bytes held for a client that does not read
SEND_BUFFER = 2**15  # and in the system, which on Linux doubles it


class Closing:
    """A transport whose `close` the protocol decides on; all else is the transport's own."""

    def __init__(self, inner: asyncio.Transport, protocol: "Patient") -> None:
        self._inner, self._protocol = inner, protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None:
        self._protocol.finish()

    def is_closing(self) -> bool:
        return self._protocol.draining or self._inner.is_closing()


class Patient(H11Protocol):
    """One connection. Made by uvicorn, from the subclass that has `limits`."""

    limits: Limits
    draining = False
    inner: asyncio.Transport
    since = 0.0
    """When it began to wait for a request, or for its client to take an answer: by this, connections make room."""
    _header: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None
    _rest: asyncio.TimerHandle | None = None
    _ask: asyncio.TimerHandle | None = None
    _ended: float | None = None  # when the client ended its side
    _left = MAX_DRAINED

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.inner, self.since = transport, self.loop.time()
        _limit_buffers(transport)
        super().connection_made(cast(asyncio.Transport, Closing(transport, self)))
        if len(self._others()) >= most_connections():
            self._make_room()
        self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header, self._write, self._rest, self._ask):
            _cancelled(timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.draining:
            self._drain(len(data))
            return
        if self._header is None and not self._answering():
            self._wait_for_header()
        super().data_received(data)
        if self._answering():
            self._header = _cancelled(self._header)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Returns whether the connection stays open: for the answer to a request that has come whole. A client that
        has gone altogether looks the same, and shows when something is written to it."""
        if self.draining or not self._whole():
            return False
        self._ended = self.loop.time()
        self._ask = self.loop.call_later(ASK_SECONDS, self._still_there)
        return True

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()
        if self._ended is not None and not self._answering() and not self.transport.is_closing():
            self.finish()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.since = self.loop.time()
        self._write = _cancelled(self._write) or self.loop.call_later(self.limits.write_seconds, self.inner.abort)
        stalled = [other for other in self._others() if other.flow.write_paused]
        if len(stalled) >= MAX_STALLED:
            min(stalled, key=lambda other: other.since).inner.abort()

    def resume_writing(self) -> None:
        self._write = _cancelled(self._write)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        body = as_json(ApiError(400, "the request is not HTTP", code="invalid_http").body())
        headers = [("content-type", "application/json"), ("connection", "close"), ("x-should-retry", "false")]
        headers.append(("x-request-id", new_id()))
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.inner.write(self.conn.send(event) or b"")
        self.finish()

    def finish(self) -> None:
        """Closes the connection. What the client is still sending is taken first, within limits: a reset, which is
        the answer to bytes that nobody takes, would cost it the answer that it has not read yet."""
        if self.draining or self.inner.is_closing() or not self._sending():
            self.inner.close()
            return
        self.draining = True
        self._rest = self.loop.call_later(self.limits.read_seconds, self.inner.abort)
        if self.inner.can_write_eof():
            self.inner.write_eof()
        self.flow.resume_reading()

    def _drain(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            self.inner.abort()

    def _sending(self) -> bool:
        """Whether more of a request comes, or has come and is not read."""
        if self._ended is not None:
            return False
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR) or bool(self.conn.trailing_data[0])

    def _wait_for_header(self) -> None:
        self._header = self.loop.call_later(self.limits.read_seconds, self.inner.abort)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _whole(self) -> bool:
        """Whether an answer is due to a request that has come to its end."""
        return self._answering() and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)

    def _others(self) -> "list[Patient]":
        open_ = [other for other in self.connections if isinstance(other, Patient) and not other.inner.is_closing()]
        return [other for other in open_ if other is not self]

    def _make_room(self) -> None:
        """The oldest of those that wait for their clients goes, so that half-sent requests keep nobody out."""
        waiting = [other for other in self._others() if not other._whole() or other.flow.write_paused]
        min(waiting, key=lambda other: other.since, default=self).inner.abort()

    def _still_there(self) -> None:
        """Writes what changes no answer: to a client that has gone this fails, at the second time.

        100 (Continue) may come at any time, and often (RFC 9110, 15.2); HTTP/1.0 has none, so a client of it has the
        time that a silent stream has. `probe`: what may stand between two pieces of the answer that has begun."""
        self._ask = self.loop.call_later(ASK_SECONDS, self._still_there)
        if not self._answering() or self.flow.write_paused:
            return
        probe = self.cycle.scope["state"].get("probe")
        if self.cycle.response_started and probe:
            self.inner.write(self.conn.send(h11.Data(data=probe)) or b"")
        elif not self.cycle.response_started and self.cycle.scope["http_version"] == "1.1":
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.inner.write(self.conn.send(go_on) or b"")
        elif not self.cycle.response_started and self.loop.time() - (self._ended or 0) > self.limits.ping_seconds:
            self.inner.abort()


def patient_protocol(limits: Limits) -> type[Patient]:
    """The protocol class for `limits`: uvicorn makes the instances itself."""
    return type("Patient", (Patient,), {"limits": limits})


def most_connections() -> int:
    """MAX_CONNECTIONS, or half of the files that the process may open, if that is less."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


def _limit_buffers(transport: asyncio.Transport) -> None:
    """So that a client which does not read shows soon, and not after megabytes."""
    transport.set_write_buffer_limits(high=WRITE_BUFFER)
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def _cancelled(timer: asyncio.TimerHandle | None) -> Any:
    if timer is not None:
        timer.cancel()
    return None


class GracefulServer(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM and 130 on Ctrl-C: nothing new is taken, what waits is refused, and the answer
    being given has `limits.grace_seconds`. A second signal does not wait."""

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
