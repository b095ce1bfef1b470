"""Time launches on a CUDA device: inside a recorded graph, each on data of its own, the median of many replays.

In a graph the host costs nothing, as in a decoding step; data that lie in the device's cache would make a kernel look
faster than memory is, so a launch comes with as many copies of its data as fill the cache three times.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch

LAUNCHES = 32
"""Launches of a graph, at least: one alone would be as short as the time between two events can be told."""
WARM_S, REPLAYS = 0.1, 30
"""Seconds of replays that do not count, in which a card reaches its clock; and replays that do."""
Launch = Callable[[], object]


class Timer(Protocol):
    """What times launches."""

    cache_bytes: int
    """Size of the cache in front of the device's memory."""

    def seconds(self, launches: Sequence[Launch]) -> float:
        """Return the time of one of several like launches, run in turn."""
        ...

    def wall(self, run: Launch, times: int) -> float:
        """Return the median wall time of a run that ends with its results on the host."""
        ...


class CudaTimer:
    """Times with events around the replays of a graph."""

    def __init__(self) -> None:
        self.cache_bytes = int(torch.cuda.get_device_properties(0).L2_cache_size)

    def seconds(self, launches: Sequence[Launch]) -> float:
        from ...ops.cuda.graph import record

        row = list(launches) * -(-LAUNCHES // len(launches))
        graph, _ = record(lambda: [launch() for launch in row])
        began = time.perf_counter()
        while time.perf_counter() - began < WARM_S:
            graph.replay()
            torch.cuda.synchronize()
        return median(elapsed(graph.replay) for _ in range(REPLAYS)) / len(row)

    def wall(self, run: Launch, times: int) -> float:
        for _ in range(2):  # compiles, records, and brings the card to its clock
            run()
        return median(self._wall(run) for _ in range(times))

    def _wall(self, run: Launch) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - began


def elapsed(run: Launch) -> float:
    """Return the seconds between two events around what `run` launches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def copies(cache_bytes: int, n_bytes: int) -> int:
    """Return how many copies of data together are three times as large as the cache."""
    return max(1, -(-3 * cache_bytes // n_bytes))


@dataclass(frozen=True, slots=True)
class Row:
    """One answer of a card."""

    question: str
    what: str
    seconds: float | None = None
    """Of one launch, pass or token."""
    n_bytes: int | None = None
    """Bytes that must be moved in that time."""
    n_flops: int | None = None
    n_tokens: int | None = None
    note: str = ""
    problem: str | None = None
    """Why there is no answer."""


def answered(question: str, what: str, measured: Callable[[], Row]) -> Row:
    """Return a row, or one that says what went wrong: the next is measured all the same."""
    try:
        return measured()
    except Exception as error:  # a kernel that does not compile or launch is an answer too
        words = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        return Row(question, what, problem=words)


Figures = dict[str, Any]


def figures(row: Row, copy_gb_s: float | None) -> Figures:
    """Return what follows from a row's time: rates, and the share of the rate at which memory is copied."""
    found: Figures = {"question": row.question, "what": row.what}
    if row.problem is not None:
        return found | {"problem": row.problem}
    if row.seconds:
        found["us"] = row.seconds * 1e6
        if row.n_bytes:
            found["gb_s"] = row.n_bytes / row.seconds / 1e9
            found["share_of_copy"] = found["gb_s"] / copy_gb_s if copy_gb_s else None
        if row.n_flops:
            found["tflop_s"] = row.n_flops / row.seconds / 1e12
        if row.n_tokens:
            found["tok_s"] = row.n_tokens / row.seconds
    return found | ({"note": row.note} if row.note else {})
