"""Launch a kernel with as many tiles in flight as a device's shared memory holds.

Tables of configurations are written for data-centre cards, whose multiprocessors have 164 to 228 KB of shared memory.
Those of other cards have about 100: there a stage or two less fits.
"""

from collections.abc import Hashable
from typing import Any

from triton.runtime.errors import OutOfResources

_found: dict[Hashable, int] = {}


def launch_fitting(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    *,
    warps: int,
    stages: int,
) -> None:
    """Launch with `stages` stages of loads, or as many as fit. Raises OutOfResources where not even one does."""
    key = (kernel, tuple(constants.items()), warps)
    for left in range(_found.get(key, stages), 0, -1):
        try:
            kernel[grid](*arguments, **constants, num_warps=warps, num_stages=left)
        except OutOfResources:
            if left == 1:
                raise
        else:
            _found[key] = left
            return
