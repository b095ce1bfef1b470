"""Measure how fast host memory is read.

`python -m llava_ref.benchmark.bandwidth THREADS` holds a buffer several times as large as the last cache, and for each
line on standard input reads it several times and prints 10^9 bytes a second: a process of its own, so that the buffer
is in no other's peak memory.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from ..ops.weight_budget import free_memory

SIZE = 1 << 29
"""Bytes of the buffer, at least where memory is free."""
TIMES = 4
"""How often it holds all last caches of the machine: at most a quarter of it can then be read from them."""
PASSES = 5
CPUS = Path("/sys/devices/system/cpu")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cache_bytes(cpus: Path = CPUS) -> int:
    """Return the bytes of all caches of the last level; 0 where the system does not say (it is Linux that does:
    https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-devices-system-cpu, "cache")."""
    found = dict[tuple[int, str], int]()
    for folder in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, shared, size = ((folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
            found[int(level), shared] = int(size[:-1]) * UNITS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):  # a virtual machine may leave one out
            continue
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last)


def buffer_size(cpus: Path = CPUS, free: int | None = None) -> int:
    """Return the bytes to read: `TIMES` the last caches, and at most a quarter of the free memory."""
    free = free_memory() if free is None else free
    return min(max(SIZE, TIMES * cache_bytes(cpus)), free // 4) // 64 * 64


def read_rate(
    threads: int, size: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """Allocate a buffer; return what reads it with some threads and gives 10^9 bytes a second, the median of passes."""
    size = size or buffer_size()
    # of what numpy can do to an array, the largest of 32-bit integers waits for memory the most
    parts = np.array_split(np.ones(size // 4, np.uint32), threads)
    pool = ThreadPoolExecutor(threads)

    def once() -> float:
        began = clock()
        list(pool.map(np.maximum.reduce, parts))
        return size / (clock() - began) / 1e9

    def read() -> float:
        return median(once() for _ in range(PASSES))

    return read


def main() -> None:
    read = read_rate(int(sys.argv[1]))
    for _ in sys.stdin:
        print(read(), flush=True)


if __name__ == "__main__":
    main()
