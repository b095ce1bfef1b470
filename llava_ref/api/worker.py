"""Runs the model in one thread: first come, first served; several requests at once where their tokens share steps.

A job is a function that returns an iterator of turns: JSON objects, which are handed to the event loop, and in between
`Turn`s, where other jobs may run. As many jobs run at once as the model's sequences can share a step, so one at a time
where each is stepped by itself. A job whose client disconnects is removed from the queue, or stopped before its next
token, or within a prompt at the next array that the forward pass names.

Backpressure: a stream whose client does not read is paused after MAX_BEHIND unread events and resumed once they have
been read; meanwhile the next request runs. Each paused job keeps the memory of a sequence, so there are at most as many
as run at once.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from enum import Enum
from typing import Any

from ..errors import LlavaError
from ..generation.answer import Turn
from ..generation.together import in_turn
from ..model import Llava
from ..ops.protocol import Array
from ..tracing.trace import At, Probe
from .errors import ApiError, from_library, internal
from .limits import MAX_BEHIND
from .progress import RequestProgress

log = logging.getLogger("llava_ref.server")
Items = Generator[dict[str, Any] | Turn, None, None]
Work = Callable[[], Items]
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


class State(Enum):
    """What becomes of a job after a turn."""

    GOING = "has another turn"
    BEHIND = "must be paused until its client has read"
    ENDED = "is done"


class ModelJob:
    """The work of one request. Created on the event loop, which takes its items: objects, then ENDED or an ApiError.

    `on_end` is called in the worker's thread when the model has finished the job."""

    def __init__(
        self, model: Llava, work: Work, on_end: Callable[[], None], progress: RequestProgress | None = None
    ) -> None:
        self.model, self.on_end, self._work = model, on_end, work
        self.progress = progress
        """Of a request whose client wants to be told."""
        self.cancelled = threading.Event()
        self.at_prompt = False
        """Whether a stretch of a prompt is run in the next turn."""
        self.on_ready: Callable[[], None] | None = None
        """Called when enough items have been taken for a paused job to resume."""
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._turns: Items | None = None
        self._probes: list[Probe] = [CancelProbe(self.cancelled), *([progress.probe] if progress else [])]
        self._n_produced = self._n_consumed = 0
        self._loop = asyncio.get_running_loop()

    def turn(self) -> State:
        """Run in the worker's thread, to the next token or for a stretch of a prompt. An error ends only this job."""
        try:
            with self.model.probes.attached(*self._probes):
                state = State.ENDED if self.cancelled.is_set() else self._advance()
        except Cancelled:
            state = State.ENDED
        except ApiError as error:
            state = self._failed(error)
        except LlavaError as error:
            state = self._failed(from_library(error, None, None))
        except Exception:
            log.exception("a request failed")
            state = self._failed(internal())
        return state

    def _advance(self) -> State:
        self._turns = self._turns or self._work()
        item = next(self._turns, ENDED)
        self.at_prompt = item is Turn.PROMPT
        if isinstance(item, Turn):
            return State.GOING
        self.put(item)
        if item is ENDED:
            return State.ENDED
        return State.BEHIND if self._n_produced - self._n_consumed > MAX_BEHIND else State.GOING

    def _failed(self, error: ApiError) -> State:
        self.put(error)
        return State.ENDED

    def end(self) -> None:
        """Give back what the job holds. Called in the worker's thread, behind its last turn."""
        try:
            if self._turns is not None:
                self._turns.close()
        except Exception:
            log.exception("a request did not end well")
        self.on_end()

    @property
    def ready(self) -> bool:
        """Whether a paused job can resume, or is cancelled and can end."""
        return self.cancelled.is_set() or self._n_produced - self._n_consumed <= MAX_BEHIND // 2

    def put(self, item: Any) -> None:
        self._n_produced += 1
        with suppress(RuntimeError):  # the event loop has ended, and the waiting request with it
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def refuse(self, error: ApiError) -> None:
        """Cancel the job, and tell the client why."""
        self.cancelled.set()
        self.put(error)

    async def take(self) -> Any:
        item = await self._items.get()
        self._n_consumed += 1
        if self.on_ready is not None and self.ready:
            self.on_ready()
        return item


class Worker:
    """The model's thread, the jobs that it runs, and the queue of those that wait."""

    def __init__(self) -> None:
        self._waiting: deque[ModelJob] = deque()
        self._running: list[ModelJob] = []  # in the order in which they began
        self._paused: list[ModelJob] = []
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
    def running(self) -> int:
        """Return how many jobs are being run at once."""
        return len(self._running)

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def ahead(self, job: ModelJob) -> int:
        """Count the requests that run, or wait in front of one that waits; 0 if it does not wait."""
        with self._changed:
            return len(self._running) + self._waiting.index(job) if job in self._waiting else 0

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
        """Accept no more jobs, refuse the waiting ones, and stop the running ones after `grace` seconds."""
        with self._changed:
            self._closing = True
            running, refused = [*self._running], [*self._waiting, *self._paused]
            self._waiting.clear()
            for job in refused:
                job.refuse(shutting_down())
            self._changed.notify()
        if running:
            timer = threading.Timer(grace, self._stop, [running])
            timer.daemon = True
            timer.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _stop(self, jobs: Iterable[ModelJob]) -> None:
        with self._changed:
            for job in jobs:
                if job in self._running or job in self._paused:
                    job.refuse(shutting_down())
            self._changed.notify()

    def _serve(self) -> None:
        try:
            while self._start():
                self._round()
        finally:
            self._fail_waiting()

    def _round(self) -> None:
        """Run a turn of each job whose turn it is."""
        cancelled = [job for job in self._running if job.cancelled.is_set()]
        for job in dict.fromkeys([*cancelled, *in_turn(self._running)]):
            state = job.turn()
            if state is not State.GOING:
                self._leave(job, state)

    def _leave(self, job: ModelJob, state: State) -> None:
        """Take a job out of those that run. One that is paused when too many are takes the place of the oldest."""
        ended = [job] if state is State.ENDED else []
        with self._changed:
            if state is State.BEHIND:
                job.on_ready = self._notify
                self._paused.append(job)
                if len(self._paused) > job.model.together:
                    ended = [self._paused.pop(0)]
                    problem = "the answer is not being read and other requests wait"
                    ended[0].refuse(ApiError(408, problem, code="timeout"))
            self._running.remove(job)
        for job in ended:
            job.end()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _fail_waiting(self) -> None:
        """Unblock all waiting requests when the thread dies."""
        with self._changed:
            self._dead = True
            left = [*self._running, *self._paused, *self._waiting]
            self._waiting.clear()
        for job in left:
            job.put(worker_dead())

    def _start(self) -> bool:
        """Start the jobs that may run now, and wait until there is one; return False at the end of the server."""
        with self._changed:
            while True:
                while self._start_next():
                    pass
                if self._running or (self._closing and not self._paused):
                    return bool(self._running)
                self._changed.wait()

    def _start_next(self) -> bool:
        """Start a paused job that is ready, or the next that waits, if it may run beside those that do."""
        ready = [job for job in self._paused if job.ready]
        paused = next((job for job in ready if job.cancelled.is_set()), ready[0] if ready else None)
        job = paused or (self._waiting[0] if self._waiting else None)
        if job is None or not (job.cancelled.is_set() or self._has_room(job)):
            return False
        (self._waiting if paused is None else self._paused).remove(job)
        self._running.append(job)
        return True

    def _has_room(self, job: ModelJob) -> bool:
        return len(self._running) < min(other.model.together for other in [*self._running, job])


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)


def worker_dead() -> ApiError:
    return ApiError(503, "the thread that runs the model has died: start the server again", code="worker_dead")
