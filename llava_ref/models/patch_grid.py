"""Lay out the patches of a picture of any size for a tower with rope in two directions.

n patches, N squares of merged patches, dh head size. Qwen2-VL, https://arxiv.org/abs/2409.12191, section 2.1; the order
of patches is transformers' and llama.cpp's (b11549, tools/mtmd/clip.cpp), so that stages can be compared row by row.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..ops.protocol import Array, Ops, Plan
from ..ops.sees import Sees, groups

BASE = 10000.0
MERGE = 2
"""Patches along a side of what becomes one row."""


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """The patches of a picture, in the order in which the tower runs them: the four of a merged square together, and
    the squares of a window together."""

    places: np.ndarray  # (n, 2) int64: row and column of each patch
    window: np.ndarray  # (n,) int64: the number of its window, which never falls
    squares: np.ndarray  # (N,) int64: the number of each merged square, counted row by row

    @classmethod
    def of(cls, rows: int, columns: int, side: int) -> "PatchGrid":
        """Lay out rows x columns patches; `side`: merged squares a side of a window."""
        y, x = (axis.ravel() for axis in np.mgrid[: rows // MERGE, : columns // MERGE])
        window = y // side * -(-columns // MERGE // side) + x // side
        squares = np.argsort(window, kind="stable")
        corner = np.stack([y, x], 1)[squares] * MERGE  # (N, 2)
        within = np.array([(dy, dx) for dy in range(MERGE) for dx in range(MERGE)])
        places = (corner[:, None] + within).reshape(-1, 2)
        return cls(places, window[squares].repeat(MERGE**2), squares)

    def angles(self, head_size: int) -> np.ndarray:
        """Return the angle of each patch and pair of channels: half of the pairs by row, half by column.  (n, dh/2)"""
        pair = np.arange(head_size // 4)
        return (self.places[:, :, None] * BASE ** (-4.0 * pair / head_size)).reshape(len(self.places), -1)


@dataclass(frozen=True, slots=True)
class PatchesAt:
    """Where the patches stand: the same in every block."""

    cos: Array  # (n, dh / 2)
    sin: Array  # (n, dh / 2)
    everything: Plan
    windows: Plan


def placed(grid: PatchGrid, head_size: int, ops: Ops) -> PatchesAt:
    n, angles = len(grid.places), grid.angles(head_size)
    windows = replace(Sees.all(n), within=groups(grid.window))
    return PatchesAt(ops.array(np.cos(angles)), ops.array(np.sin(angles)), ops.plan(Sees.all(n)), ops.plan(windows))
