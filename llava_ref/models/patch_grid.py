"""Lay out the patches of a picture of any size for a tower with rope in two directions.

n patches, N squares of merged patches, dh head size. Qwen2-VL, https://arxiv.org/abs/2409.12191, section 2.1, and
Pixtral, https://arxiv.org/abs/2410.07073, section 2.1; the order of patches is transformers' and llama.cpp's (b11549,
tools/mtmd/clip.cpp), so that stages can be compared row by row.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..ops.protocol import Array, Ops, Pairs
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

    def windows(self) -> Sees:
        """Describe that a patch sees those of its own window."""
        return replace(Sees.all(len(self.window)), within=groups(self.window))


@dataclass(frozen=True, slots=True)
class PatchesAt:
    """Where the patches stand: the same in every block."""

    cos: Array  # (n, dh / 2)
    sin: Array  # (n, dh / 2)
    pairs: Pairs  # which channels turn together


def angles(places: np.ndarray, head_size: int, apart: float = 0.0) -> np.ndarray:
    """Return the angle of each patch and pair of channels: half of the pairs by row, half by column.

    `apart`: by how many pairs the columns' angles are behind the rows'.  (n, 2) -> (n, dh/2)"""
    pair = np.arange(head_size // 4) + np.array([[0.0], [apart]])  # (2, dh/4)
    return (places[:, :, None] * BASE ** (-4.0 * pair / head_size)).reshape(len(places), -1)


def placed(places: np.ndarray, head_size: int, pairs: Pairs, ops: Ops, apart: float = 0.0) -> PatchesAt:
    """Return how rope turns patches at these rows and columns, (n, 2)."""
    turned = angles(places, head_size, apart)
    return PatchesAt(ops.array(np.cos(turned)), ops.array(np.sin(turned)), pairs)
