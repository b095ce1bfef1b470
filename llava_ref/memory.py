"""Return freed memory to the system. The C library would keep it, in a heap for each thread."""

import ctypes
import gc
import sys
from contextlib import suppress


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc's `malloc_trim`)."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def collect() -> None:
    """Free objects in reference cycles, then return freed memory to the system."""
    gc.collect()
    give_back()
