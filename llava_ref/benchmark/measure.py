"""Time stages, repeat them, and refuse repetitions during which something else kept the machine busy.

A run that shares its processors is slower by more than its share: a pass waits for the thread that comes last. So every
repetition records the processor time of the whole machine beside its own.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

QUIET = 0.1
"""A repetition is noisy where others use more than this share of the machine's processors."""
TRIES = 3
"""Repetitions made for each one wanted, at most."""
STAT = Path("/proc/stat")


def machine_busy() -> float | None:
    """Return the seconds that all processors together have worked, time taken by a hypervisor included; None where the
    system does not say (it is Linux that does: proc(5), /proc/stat)."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split(maxsplit=9)[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Clocks:
    """The clocks that are read, all in seconds. A test brings its own."""

    wall: Callable[[], float] = time.perf_counter
    own: Callable[[], float] = time.process_time
    """Processor time of this process, all threads together."""
    busy: Callable[[], float | None] = machine_busy
    """Processor time of the whole machine."""
    processors: int = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Lap:
    """One stage of one repetition."""

    seconds: float
    processors: float
    """Processor time of this process over wall time."""


@dataclass(slots=True)
class Repetition:
    """All stages once."""

    laps: dict[str, Lap] = field(default_factory=dict)
    seconds: float = 0.0
    others: float | None = None
    """Processors that anything but this process used meanwhile; None where the system does not say."""


@dataclass(frozen=True, slots=True)
class Repetitions:
    """The repetitions that count, and how many did not."""

    kept: tuple[Repetition, ...]
    n_refused: int
    """Noisy ones that were left out."""
    n_noisy: int
    """Noisy ones that count all the same, because too few were quiet."""

    def seconds(self, stage: str) -> list[float]:
        """Return the seconds of a stage in each repetition; none for one that was not run."""
        return [one.laps[stage].seconds for one in self.kept if stage in one.laps]

    def median(self, stage: str) -> float | None:
        found = self.seconds(stage)
        return median(found) if found else None

    def processors(self, stage: str) -> float | None:
        found = [one.laps[stage].processors for one in self.kept if stage in one.laps]
        return median(found) if found else None

    @property
    def others(self) -> float | None:
        """Return the processors that others used in the noisiest repetition that counts."""
        found = [one.others for one in self.kept if one.others is not None]
        return max(found) if found else None


class Stopwatch:
    """Times the stages of a repetition: `with watch.lap("prefill"):`."""

    def __init__(self, clocks: Clocks, ready: Callable[[], None]) -> None:
        """`ready` returns once the device has done everything that it was given."""
        self.clocks, self._ready = clocks, ready
        self._now = Repetition()

    @contextmanager
    def lap(self, stage: str) -> Iterator[None]:
        self._ready()
        began, own = self.clocks.wall(), self.clocks.own()
        yield
        self._ready()
        seconds, used = self.clocks.wall() - began, self.clocks.own() - own
        self._now.laps[stage] = Lap(seconds, used / seconds if seconds else 0.0)

    def repetition(self, run: Callable[[], object]) -> Repetition:
        """Run once; the laps that it times, and what others did meanwhile."""
        self._now, c = Repetition(), self.clocks
        began, own, busy = c.wall(), c.own(), c.busy()
        run()
        seconds, used, busy_now = c.wall() - began, c.own() - own, c.busy()
        self._now.seconds = seconds
        if busy is not None and busy_now is not None and seconds:
            self._now.others = max(0.0, (busy_now - busy - used) / seconds)
        return self._now


def repeat(
    runs: Sequence[Callable[[], Repetition]], n: int, processors: int, between: Callable[[], object] = lambda: None
) -> list[Repetitions]:
    """Run all in turn until `n` turns were quiet, at most `TRIES` times n; then the least noisy fill up the rest.

    A turn is noisy if one of its runs is, so all have as many that count, made at the same times. `between` is called
    behind each turn, and does not count."""
    limit = QUIET * processors
    turns: list[list[Repetition]] = []
    while sum(_noise(turn) <= limit for turn in turns) < n and len(turns) < TRIES * n:
        turns.append([run() for run in runs])
        between()
    kept = sorted(turns, key=lambda turn: max(limit, _noise(turn)))[:n]
    n_noisy = sum(_noise(turn) > limit for turn in kept)
    return [Repetitions(each, len(turns) - n, n_noisy) for each in zip(*kept, strict=True)]


def _noise(turn: Sequence[Repetition]) -> float:
    """Return the processors that others used in the noisiest run of a turn; 0 where the system does not say."""
    return max(one.others or 0.0 for one in turn)
