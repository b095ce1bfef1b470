"""Collect launches into programs, and run them: one call runs a whole program on several threads.

A **launch** is a kernel, its arguments, and a number of items, none of which depends on another or on how they are
shared out: results are the same bits for any number of threads. A **stage** is launches that do not depend on one
another. A **program** is stages in turn. Threads are those of the OpenMP library that is loaded, which torch brings:
one pool for both. Without one, threads of Python do the same.
"""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .compiled import Kernel
from .workers import LAUNCH, RECORD, STAGE, alone, start, work

__all__ = ["Kernel", "Launch", "Program", "arguments", "run"]
WORDS = RECORD // 8
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


@cache
def _callable(kernel: Kernel) -> Any:
    """Return a kernel as a function that Python calls."""
    return _CALL(kernel.address)


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel over `items`; below 2 * `grain` of them one thread does all. `args` is int64 and lives as long."""

    kernel: Kernel
    args: np.ndarray
    items: int
    grain: int

    @property
    def units(self) -> int:
        """Count what threads take at a time."""
        return max(1, self.items // self.grain)


def arguments(*values: int | float) -> np.ndarray:
    """Return a kernel's arguments, (n,) int64: a float as the bits of a float64."""
    return np.array([np.float64(v).view(np.int64) if isinstance(v, float) else v for v in values], np.int64)


@cache
def _symbol(name: str) -> int:
    """Return the address of a function that a library of this process has, 0 where there is none."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


class Program:
    """Stages of launches, as one array that a compiled call goes through."""

    def __init__(self, stages: Sequence[Sequence[Launch]], keep: Sequence[object] = ()):
        self._stages = [tuple(launch for launch in stage if launch.items > 0) for stage in stages]
        self._stages = [stage for stage in self._stages if stage]
        self._keep = keep
        self._units = max((sum(launch.units for launch in stage) for stage in self._stages), default=0)
        self._words = self._table()

    def _table(self) -> np.ndarray:
        stages, launches = len(self._stages), sum(map(len, self._stages))
        room = np.zeros((1 + stages + launches) * WORDS + WORDS, np.int64)
        words = (
            room[-room.ctypes.data % RECORD // 8 :].reshape(-1)[: (1 + stages + launches) * WORDS].reshape(-1, WORDS)
        )
        words[0, :3] = stages, 1, _symbol("usleep")
        at = 1 + stages
        for row, stage in zip(words[1:], self._stages, strict=False):
            row[2 : len(STAGE)] = sum(launch.units for launch in stage), len(stage), at * RECORD
            for launch in stage:
                head = launch.kernel.address, launch.args.ctypes.data, launch.items, launch.grain, launch.units
                words[at, : len(LAUNCH)] = head
                at += 1
        return words

    def run(self, threads: int) -> None:
        """Run the stages in turn. Not at the same time from two threads of Python."""
        if not self._stages:
            return
        address = self._words.ctypes.data
        if threads < 2 or self._units < 2:
            _callable(alone)(address, 0, 0)
            return
        self._words[0, 1] = threads
        gomp = _symbol("GOMP_parallel")
        if gomp:
            _callable(start)(address, work.address, gomp)
        else:
            self._run_elsewhere(address, threads)

    def _run_elsewhere(self, address: int, threads: int) -> None:
        self._words[1 : 1 + len(self._stages), :2] = 0
        others = [_threads(threads - 1).submit(_callable(work), address, 0, 0) for _ in range(threads - 1)]
        _callable(work)(address, 0, 0)
        for other in others:
            other.result()


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "kernels")


def run(*launches: Launch, threads: int) -> None:
    """Run one stage now."""
    Program([launches]).run(threads)
