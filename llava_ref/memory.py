"""Return freed memory to the system, which the C library would keep in a heap for each thread; say how much is held."""

import ctypes
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc's `malloc_trim`)."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def collect() -> None:
    """Free objects in reference cycles, then return freed memory to the system."""
    gc.collect()
    give_back()


def resident_mb() -> float | None:
    """Return the memory that this process holds now, in 10^6 bytes; None where the system does not say (Linux does)."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return None
