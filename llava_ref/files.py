"""Read a small file whole, whatever a path that somebody gave leads to."""

import os
import stat
from pathlib import Path

from .errors import LlavaError


def read_regular(path: Path, most: int, error: type[LlavaError]) -> bytes:
    """Read a regular file; returns at most `most` + 1 bytes, so that the caller can tell what is longer.

    Never waits on a FIFO. Raises `error`, which names the path, for a file that is not regular or cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise error(path, "file", "not a regular file")
            return file.read(most + 1)
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        raise error(path, "file", getattr(problem, "strerror", None) or str(problem)) from None
