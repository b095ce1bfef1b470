"""One thread that runs the model, one request after the other, first come, first served.

A stream whose client takes nothing is set aside after MAX_BEHIND events, and goes on once the client has taken them;
the next request is answered meanwhile. One may be set aside: each keeps the memory of a sequence.

A job is a function that gives an iterator of JSON objects. What it yields goes to the event loop that waits for it; a
job whose client has gone is dropped from the queue, or stopped at the next array that the forward pass names.
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
    """One request's turn. Made on the event loop that takes its items: objects, then ENDED or an ApiError.

    `on_end` is called in the worker's thread, when the model is done with it."""

    def __init__(self, model: Llava, work: Work, on_end: Callable[[], None]) -> None:
        self.model, self.on_end, self._work = model, on_end, work
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.on_taken: Callable[[], None] | None = None
        """Called when enough has been taken for the work to go on."""
        self._steps: Iterator[dict[str, Any]] | None = None
        self._made = self._taken = 0
        self._loop = asyncio.get_running_loop()

    def run(self) -> bool:
        """Whether it has ended; or else it is to be set aside. In the worker's thread. What goes wrong is this
        request's own affair."""
        try:
            with self.model.probed(StopWhen(self.cancelled)):
                return self._go_on()
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

    def _go_on(self) -> bool:
        self._steps = self._steps or self._work()
        for item in self._steps:
            if self.cancelled.is_set():
                return True
            self.put(item)
            if self._made - self._taken > MAX_BEHIND:
                return False
        self.put(ENDED)
        return True

    @property
    def ready(self) -> bool:
        """Whether one that was set aside may go on, be it to its end."""
        return self.cancelled.is_set() or self._made - self._taken <= MAX_BEHIND // 2

    def put(self, item: Any) -> None:
        self._made += 1
        with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def take(self) -> Any:
        item = await self._items.get()
        self._taken += 1
        if self.on_taken is not None and self.ready:
            self.on_taken()
        return item


class Worker:
    """The thread and its queue."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._aside: Job | None = None
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
        with self._changed:
            self._changed.notify()  # it may be set aside
            with suppress(ValueError):
                self._waiting.remove(job)

    def drain(self, grace: float) -> None:
        """Takes nothing more, refuses what waits, and stops the answer being given in `grace` seconds."""
        with self._changed:
            self._closing = True
            running = self._running
            waiting = [*self._waiting, *([] if self._aside is None else [self._aside])]
            self._waiting.clear()
            self._aside = None
            self._changed.notify()
        for job in waiting:
            job.cancelled.set()
            job.put(closing())
        if running is not None:
            timer = threading.Timer(grace, self._give_up, [running])
            timer.daemon = True
            timer.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _give_up(self, job: Job) -> None:
        with self._changed:
            if job in (self._running, self._aside):
                job.cancelled.set()
                job.put(closing())
                self._changed.notify()

    def _serve(self) -> None:
        try:
            while (job := self._next()) is not None:
                ended = job.run()
                with self._changed:
                    self._running = None
                    if not ended:
                        self._set_aside(job)
                if ended:
                    job.on_end()
                del job  # and with it, perhaps, the last use of a model
        finally:
            self._end()

    def _set_aside(self, job: Job) -> None:
        """The one set aside before is given up."""
        before, self._aside = self._aside, job
        job.on_taken = self._wake
        if before is not None:
            before.cancelled.set()
            before.put(ApiError(408, "the answer is not being read, and others wait", code="timeout"))
            before.on_end()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _end(self) -> None:
        """Nobody waits for ever, whatever the thread died of."""
        with self._changed:
            self._dead = True
            left = [job for job in (self._running, self._aside, *self._waiting) if job is not None]
            self._waiting.clear()
        for job in left:
            job.put(dead())

    def _next(self) -> Job | None:
        with self._changed:
            while (job := self._ready()) is None and (not self._closing or self._aside is not None):
                self._changed.wait()
            self._running = job
            return job

    def _ready(self) -> Job | None:
        if self._aside is not None and self._aside.ready:
            job, self._aside = self._aside, None
            return job
        return self._waiting.popleft() if self._waiting else None


def closing() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)


def dead() -> ApiError:
    return ApiError(503, "the thread that runs the model has died: start the server again", code="worker_dead")
