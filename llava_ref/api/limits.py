"""What one request, and all of them together, may take. The fields of `Limits` are options of `serve`."""

import threading
from dataclasses import dataclass

from .errors import ApiError

MAX_DEPTH = 64  # of arrays and objects in a request's JSON
MAX_ITEMS = 1_000_000  # commas and brackets in a request's JSON: bounds the memory it takes as objects
MAX_CHOICES = 8  # answers to one request, `n`
MAX_STOPS = 16  # stop strings
MAX_STOP_LENGTH = 256  # characters of one
MAX_PROMPTS = 64  # in one /v1/completions
MAX_BODIES = 256 * 2**20  # bytes of all requests being read or prepared at once
MAX_HELD_PIXELS = 200_000_000  # decoded, of all requests in the queue together
MAX_CONNECTIONS = 512  # then those that wait for a request, or for a client to read, make room, the oldest first
MAX_STALLED = 16  # connections whose clients take nothing of their answers
MAX_DRAINED = 2**30  # bytes of a request taken after its answer, so that the client reads that and not a reset
MAX_BEHIND = 128  # events of a stream that its client has not taken; the model then goes on to another request
RETRY_AFTER = 2  # seconds, when the queue is full


@dataclass(frozen=True, slots=True)
class Limits:
    """Each is checked where it is named in docs/limits.md."""

    max_body: int = 64 * 2**20
    """Bytes of one request, counted as they are read."""
    max_images: int = 16
    """Pictures in one request."""
    max_pixels: int = 80_000_000
    """Of all pictures of one request together, before they are decoded."""
    max_queue: int = 16
    """Requests that wait for the one being answered."""
    read_seconds: float = 30.0
    """For a request's header, and again for its body."""
    write_seconds: float = 30.0
    """A client that takes nothing for so long is given up."""
    ping_seconds: float = 5.0
    """Between comments that keep a silent stream open."""
    grace_seconds: float = 10.0
    """For the answer being given when the server is told to end."""


class Budget:
    """An amount that requests share: whoever would take more than is left is told to come back."""

    def __init__(self, amount: int, what: str) -> None:
        self._left, self._what, self._lock = amount, what, threading.Lock()
        self.amount = amount

    @property
    def taken(self) -> int:
        return self.amount - self._left

    def take(self, count: int) -> None:
        """ApiError 429 if there is not so much left."""
        with self._lock:
            if count > self._left:
                raise ApiError(429, f"busy: {self._what}", code="server_busy", retry_after=RETRY_AFTER)
            self._left -= count

    def give_back(self, count: int) -> None:
        with self._lock:
            self._left += count

    def of(self, count: int) -> "Share":
        """ApiError 429 if there is not so much left."""
        return Share(self, count)


class Share:
    """What one request took of a budget. It is given back once, at the block's end if not before."""

    def __init__(self, budget: Budget, count: int) -> None:
        budget.take(count)
        self._budget, self._count, self._lock = budget, count, threading.Lock()

    def give_back(self) -> None:
        with self._lock:
            count, self._count = self._count, 0
        self._budget.give_back(count)

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()
