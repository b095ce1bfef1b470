"""Limits on one request and on all requests together. The fields of `Limits` are options of `serve`."""

import threading
from dataclasses import dataclass

from .errors import ApiError

MAX_CHOICES = 8  # answers to one request, `n`
MAX_STOPS = 16  # stop strings
MAX_STOP_LENGTH = 256  # characters of one stop string
MAX_PROMPTS = 64  # prompts in one /v1/completions request
MAX_BODIES = 256 * 2**20  # bytes of all request bodies being read or prepared at once
MAX_HELD_PIXELS = 200_000_000  # decoded pixels of all requests in the queue together
MAX_CONNECTIONS = 512  # open connections; beyond it, the oldest that waits for its client is closed
MAX_STALLED = 16  # connections whose clients do not read their answers
MAX_DRAINED = 2**30  # bytes of a request read after its answer; without it the client would see a reset, not the answer
MAX_BEHIND = 128  # unread events of a stream; beyond it the stream is paused and another request runs
PROGRESS_SECONDS = 0.25  # interval at which a client is told how far its request is, if it asks
RETRY_AFTER = 2  # seconds after which a client may try again when the queue is full


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that an operator can change; docs/limits.md lists them."""

    max_body: int = 64 * 2**20
    """Bytes of one request body, counted while it is read."""
    max_images: int = 16
    """Pictures in one request."""
    max_pixels: int = 80_000_000
    """Pixels of all pictures of one request together, counted before they are decoded."""
    max_running: int = 8
    """Requests answered at once, where one step of the decoder can run the next token of each."""
    max_queue: int = 16
    """Requests that may wait while others are being answered."""
    read_seconds: float = 30.0
    """Timeout for a request's header, and a second one for its body."""
    write_seconds: float = 30.0
    """Timeout for a client that stops reading; its connection is then closed."""
    ping_seconds: float = 5.0
    """Interval of the comments that keep a silent stream open."""
    grace_seconds: float = 10.0
    """Time that the running answers are given to finish at shutdown."""


class Allowance:
    """An amount shared by all requests. A request that needs more than remains is answered 429.

    `reason`: what the 429 says."""

    def __init__(self, amount: int, reason: str) -> None:
        self._remaining, self._reason, self._lock = amount, reason, threading.Lock()
        self.amount = amount

    @property
    def taken(self) -> int:
        return self.amount - self._remaining

    def take(self, count: int, beyond: int = 0) -> None:
        """Take `count` from the amount, or up to `beyond` more. Raises ApiError 429 if less remains."""
        with self._lock:
            if count > self._remaining + beyond:
                raise ApiError(429, f"busy: {self._reason}", code="server_busy", retry_after=RETRY_AFTER)
            self._remaining -= count

    def give_back(self, count: int) -> None:
        with self._lock:
            self._remaining += count

    def share(self, count: int, beyond: int = 0) -> "Share":
        """Take `count` and return it as a context manager. Raises ApiError 429 if less remains."""
        return Share(self, count, beyond)


class Share:
    """The part of an allowance that one request holds. It is given back exactly once, at the latest on exit."""

    def __init__(self, allowance: Allowance, count: int, beyond: int) -> None:
        allowance.take(count, beyond)
        self._allowance, self._count, self._lock = allowance, count, threading.Lock()

    def give_back(self) -> None:
        with self._lock:
            count, self._count = self._count, 0
        self._allowance.give_back(count)

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()
