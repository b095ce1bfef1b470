"""How many processor threads a computation gets, and how those wait that have nothing to do.

Threads pay where every one of them has more to do than it takes to wake it; on a machine that does something else as
well, where it has much more, because the whole computation waits for the one that comes last. And a thread that waits
must sleep: one that spins takes the processor from the very thread that is waited for. docs/python.md has figures.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

WORK = 1 << 24
"""Multiply-adds that are worth a thread: a third of a millisecond of one processor, where waking one takes 0.03 ms."""
ROWS = 16
"""A matrix is read once, however few rows are multiplied by it, and that takes as long as so many rows would."""
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def worth(rows: int, weights: int, most: int) -> int:
    """Return how many threads, 1 to `most`, a product of `rows` rows with a matrix of `weights` numbers is worth."""
    return max(1, min(most, max(rows, ROWS) * weights // WORK))


def processors() -> int:
    """Return how many processors this process may use: those it is bound to, or fewer where a container has a quota.

    The quota is that of Linux' control groups: https://docs.kernel.org/admin-guide/cgroup-v2.html, "cpu.max"."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(bound, round(int(quota) / int(period))))
    except (OSError, ValueError):  # there is none, or it says "max"
        return bound


@contextmanager
def sleeping_openmp() -> Iterator[None]:
    """Let the OpenMP runtime that is loaded inside the block put idle threads to sleep at once.

    libgomp, which torch brings, otherwise spins 300,000 times before that, some milliseconds. It reads the variable
    when it is loaded (https://gcc.gnu.org/onlinedocs/libgomp, "Environment Variables"). One that is set is obeyed."""
    if any(name in os.environ for name in WAITING):
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep numpy's products on the calling thread inside the block: OpenBLAS's own threads spin while they wait.

    The number is the whole process's, so it is put back behind the block."""
    libraries, _ = blas()
    before = [library.get_num_threads() for library in libraries]
    for library in libraries:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, number in zip(libraries, before, strict=True):
            library.set_num_threads(number)


@cache
def blas() -> tuple[list[Any], int]:
    """Return numpy's libraries for products, and the threads that they were allowed when this was first asked."""
    import numpy  # noqa: F401 - brings its library with it
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return libraries, max((library.get_num_threads() for library in libraries), default=processors())
