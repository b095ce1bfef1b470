"""Measure how fast host memory is read.

`python -m llava_ref.benchmark.bandwidth THREADS` holds a buffer larger than every cache, and for each line on standard
input reads it several times and prints 10^9 bytes a second: a process of its own, so that the buffer is in no other's
peak memory.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

SIZE = 1 << 29
"""Bytes of the buffer."""
PASSES = 5


def read_rate(threads: int, size: int = SIZE, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """Allocate a buffer; return what reads it with some threads and gives 10^9 bytes a second, the median of passes."""
    parts = np.array_split(np.ones(size // 8, np.uint64), threads)
    pool = ThreadPoolExecutor(threads)

    def once() -> float:
        began = clock()
        list(pool.map(np.bitwise_or.reduce, parts))
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
