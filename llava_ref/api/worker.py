"""One thread that runs the model, one request after the other, first come, first served.

A job is a function that gives an iterator of JSON objects. What it yields goes to the event loop that waits for it; a
job whose client has gone is dropped from the queue, or stopped at the next array that the forward pass names.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..errors import LlavaError
from ..model import Llava
from ..ops import Array
from ..trace import At, Probe
from .errors import ApiError, from_library, internal

log = logging.getLogger("llava_ref.server")
Work = Callable[[], Iterator[dict[str, Any]]]
ENDED = object()


class Cancelled(Exception):
    """Raised inside a forward pass whose answer nobody waits for any more."""


class StopWhen(Probe):
    """Ends a forward pass at its next array once the event is set: in prefill and in the vision tower too."""

    complete = False  # it need not see what is not computed

    def __init__(self, event: threading.Event) -> None:
        super().__init__(["*"])
        self._event = event

    def see(self, x: Array, at: At) -> Array:
        if self._event.is_set():
            raise Cancelled
        return x


class Job:
    """One request's turn. Made on the event loop that reads `items`: objects, then ENDED or an ApiError."""

    def __init__(self, model: Llava, work: Work) -> None:
        self.model, self._work = model, work
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.began = time.monotonic()
        self._loop = asyncio.get_running_loop()

    def run(self) -> None:
        """In the worker's thread. What goes wrong is this request's own affair."""
        try:
            with self.model.probed(StopWhen(self.cancelled)):
                for item in self._work():
                    if self.cancelled.is_set():
                        return
                    self.put(item)
            self.put(ENDED)
        except Cancelled:
            pass
        except ApiError as error:
            self.put(error)
        except LlavaError as error:
            self.put(from_library(error, None, None))
        except Exception:
            log.exception("a request failed")
            self.put(internal())

    def put(self, item: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
            self._loop.call_soon_threadsafe(self.items.put_nowait, item)


class Worker:
    """The thread and its queue."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closing = self._dead = False
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._dead

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        return self._running is not None

    def submit(self, job: Job) -> None:
        """ApiError 503 where it would never be run."""
        with self._changed:
            if self._closing:
                raise closing()
            if not self.alive:
                raise dead()
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more."""
        job.cancelled.set()
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def drain(self, grace: float) -> None:
        """Takes nothing more, refuses what waits, and stops the answer being given in `grace` seconds."""
        with self._changed:
            self._closing = True
            waiting, running = list(self._waiting), self._running
            self._waiting.clear()
            self._changed.notify()
        for job in waiting:
            job.put(closing())
        if running is not None:
            timer = threading.Timer(grace, self._give_up, [running])
            timer.daemon = True
            timer.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _give_up(self, job: Job) -> None:
        if self._running is job:
            job.cancelled.set()
            job.put(closing())

    def _serve(self) -> None:
        try:
            while (job := self._next()) is not None:
                job.run()
                with self._changed:
                    self._running = None
                del job  # and with it, perhaps, the last use of a model
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody waits for ever, whatever the thread died of."""
        with self._changed:
            self._dead = True
            left = [*([] if self._running is None else [self._running]), *self._waiting]
            self._waiting.clear()
        for job in left:
            job.put(dead())

    def _next(self) -> Job | None:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return None
            self._running = self._waiting.popleft()
            return self._running


def closing() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)


def dead() -> ApiError:
    return ApiError(503, "the thread that runs the model has died: start the server again", code="worker_dead")
