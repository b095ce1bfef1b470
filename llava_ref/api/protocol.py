"""uvicorn's HTTP/1.1 protocol with what it leaves out: time for a request's header, an end for clients that take
nothing, a bound on connections, and errors in our own form. And its server with an end that loses no answer."""

import asyncio
import signal
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError
from .limits import MAX_CONNECTIONS, Limits
from .respond import as_json
from .worker import Worker


def patient_protocol(limits: Limits) -> type[H11Protocol]:
    """The protocol class for `limits`: uvicorn makes the instances itself."""

    class Patient(H11Protocol):
        _header: asyncio.TimerHandle | None = None
        _write: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > MAX_CONNECTIONS:
                transport.abort()
                return
            self._wait_for_header()

        def connection_lost(self, exc: Exception | None) -> None:
            self._header, self._write = _cancelled(self._header), _cancelled(self._write)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._header is None and not self._answering():
                self._wait_for_header()
            super().data_received(data)
            if self._answering():
                self._header = _cancelled(self._header)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write = _cancelled(self._write) or self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._write = _cancelled(self._write)
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            body = as_json(ApiError(400, "the request is not HTTP", code="invalid_http").body())
            headers = [("content-type", "application/json"), ("connection", "close"), ("x-should-retry", "false")]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _wait_for_header(self) -> None:
            self._header = self.loop.call_later(limits.read_seconds, self.transport.abort)

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

    return Patient


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
