"""Runs the model in one thread, one request after the other, first come, first served.

A job is a function that returns an iterator of JSON objects, which are handed to the event loop. A job whose client
disconnects is removed from the queue, or stopped at the next array that the forward pass names.

Backpressure: a stream whose client does not read is paused after MAX_BEHIND unread events and resumed once they have
been read; meanwhile the next request runs. At most one job is paused, because each keeps the memory of a sequence.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..errors import LlavaError
from ..model import Llava
from ..ops.protocol import Array
from ..tracing.trace import At, Probe
from .errors import ApiError, from_library, internal
from .limits import MAX_BEHIND

log = logging.getLogger("llava_ref.server")
Work = Callable[[], Iterator[dict[str, Any]]]
ENDED = object()


class Cancelled(Exception):
    """Raised inside a forward pass to stop it when its answer is no longer needed."""


class CancelProbe(Probe):
    """Stops a forward pass at its next array once the event is set, in prefill and in the vision tower too."""

    complete = False  # arrays that are not computed need not be shown to it

    def __init__(self, event: threading.Event) -> None:
        super().__init__(["*"])
        self._event = event

    def see(self, x: Array, at: At) -> Array:
        if self._event.is_set():
            raise Cancelled
        return x


class ModelJob:
    """The work of one request. Created on the event loop, which takes its items: objects, then ENDED or an ApiError.

    `on_end` is called in the worker's thread when the model has finished the job."""

    def __init__(self, model: Llava, work: Work, on_end: Callable[[], None]) -> None:
        self.model, self.on_end, self._work = model, on_end, work
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.on_ready: Callable[[], None] | None = None
        """Called when enough items have been taken for a paused job to resume."""
        self._steps: Iterator[dict[str, Any]] | None = None
        self._n_produced = self._n_consumed = 0
        self._loop = asyncio.get_running_loop()

    def run(self) -> bool:
        """Run in the worker's thread until the end (returns True) or until the job must be paused (False).

        An error affects only this request."""
        try:
            with self.model.probed(CancelProbe(self.cancelled)):
                return self._produce()
        except Cancelled:
            pass
        except ApiError as error:
            self.put(error)
        except LlavaError as error:
            self.put(from_library(error, None, None))
        except Exception:
            log.exception("a request failed")
            self.put(internal())
        return True

    def _produce(self) -> bool:
        self._steps = self._steps or self._work()
        for item in self._steps:
            if self.cancelled.is_set():
                return True
            self.put(item)
            if self._n_produced - self._n_consumed > MAX_BEHIND:
                return False
        self.put(ENDED)
        return True

    @property
    def ready(self) -> bool:
        """Whether a paused job can resume, or is cancelled and can end."""
        return self.cancelled.is_set() or self._n_produced - self._n_consumed <= MAX_BEHIND // 2

    def put(self, item: Any) -> None:
        self._n_produced += 1
        with suppress(RuntimeError):  # the event loop has ended, and the waiting request with it
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def take(self) -> Any:
        item = await self._items.get()
        self._n_consumed += 1
        if self.on_ready is not None and self.ready:
            self.on_ready()
        return item


class Worker:
    """The model's thread and its queue of jobs."""

    def __init__(self) -> None:
        self._waiting: deque[ModelJob] = deque()
        self._running: ModelJob | None = None
        self._paused: ModelJob | None = None
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

    def submit(self, job: ModelJob) -> None:
        """Queue a job. Raises ApiError 503 if it would never run."""
        with self._changed:
            if self._closing:
                raise shutting_down()
            if not self.alive:
                raise worker_dead()
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: ModelJob) -> None:
        """Stop a job or remove it from the queue, because its answer is no longer needed."""
        job.cancelled.set()
        with self._changed:
            self._changed.notify()  # a paused job can now end
            with suppress(ValueError):
                self._waiting.remove(job)

    def drain(self, grace: float) -> None:
        """Accept no more jobs, refuse the waiting ones, and stop the running one after `grace` seconds."""
        with self._changed:
            self._closing = True
            running = self._running
            waiting = [*self._waiting, *([] if self._paused is None else [self._paused])]
            self._waiting.clear()
            self._paused = None
            self._changed.notify()
        for job in waiting:
            job.cancelled.set()
            job.put(shutting_down())
        if running is not None:
            timer = threading.Timer(grace, self._cancel_running, [running])
            timer.daemon = True
            timer.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _cancel_running(self, job: ModelJob) -> None:
        with self._changed:
            if job in (self._running, self._paused):
                job.cancelled.set()
                job.put(shutting_down())
                self._changed.notify()

    def _serve(self) -> None:
        try:
            while (job := self._next()) is not None:
                ended = job.run()
                with self._changed:
                    self._running = None
                    if not ended:
                        self._pause(job)
                if ended:
                    job.on_end()
                del job  # it may hold the last reference to a model
        finally:
            self._fail_waiting()

    def _pause(self, job: ModelJob) -> None:
        """Pause a job; one that was paused before is cancelled."""
        before, self._paused = self._paused, job
        job.on_ready = self._notify
        if before is not None:
            before.cancelled.set()
            before.put(ApiError(408, "the answer is not being read and other requests wait", code="timeout"))
            before.on_end()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _fail_waiting(self) -> None:
        """Unblock all waiting requests when the thread dies."""
        with self._changed:
            self._dead = True
            left = [job for job in (self._running, self._paused, *self._waiting) if job is not None]
            self._waiting.clear()
        for job in left:
            job.put(worker_dead())

    def _next(self) -> ModelJob | None:
        with self._changed:
            while (job := self._next_ready()) is None and (not self._closing or self._paused is not None):
                self._changed.wait()
            self._running = job
            return job

    def _next_ready(self) -> ModelJob | None:
        if self._paused is not None and self._paused.ready:
            job, self._paused = self._paused, None
            return job
        return self._waiting.popleft() if self._waiting else None


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)


def worker_dead() -> ApiError:
    return ApiError(503, "the thread that runs the model has died: start the server again", code="worker_dead")
