"""Fit a picture of Llama-3.2-Vision into a canvas of whole tiles, and lay out the rows of those tiles.

Everything follows from a picture's width and height. S side of a tile in pixels, n patches along it, L = n^2 + 1 rows
of a tile with its class token, K tiles at most, t of them with a picture, R rows in all.
Meta's llama-models, models/llama3/multimodal/image_transform.py; transformers 5.24,
models/mllama/image_processing_pil_mllama.py, `get_optimal_tiled_canvas` and `get_image_size_fit_to_canvas`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from ..images import fit
from ..images.resample import BILINEAR
from ..ops.sees import Sees

PAD_TO = 8  # the rows of a tile are padded to a multiple of this

Grid = tuple[int, int]  # rows and columns


@dataclass(frozen=True, slots=True)
class TileCanvas:
    """The rule by which a picture gets its grid of tiles."""

    side: int  # S
    most: int  # tiles

    def grids(self) -> list[Grid]:
        """Return the grids there are, in the order in which files number them from 1."""
        sides = range(1, self.most + 1)
        return [(rows, columns) for rows in sides for columns in sides if rows * columns <= self.most]

    def grid(self, width: int, height: int) -> Grid:
        """Return the grid into which a picture fits with the least enlargement, or else the least reduction.

        The smallest one where several scale it alike."""

        def scale(grid: Grid) -> float:
            rows, columns = grid
            return min(rows * self.side / height, columns * self.side / width)

        scales = [scale(grid) for grid in self.grids()]
        best = min((s for s in scales if s >= 1), default=max(scales))
        fitting = [grid for grid, s in zip(self.grids(), scales, strict=True) if s == best]
        return min(fitting, key=lambda grid: grid[0] * grid[1])

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that a picture has in its canvas: it fills one of its sides, its aspect kept.

        One smaller than a tile is enlarged to one, and one that needs no reduction stays as it is."""
        rows, columns = self.grid(width, height)
        across, down = (min(max(n, self.side), tiles * self.side) for n, tiles in ((width, columns), (height, rows)))
        if across / width < down / height:
            return across, min(math.floor(height * (across / width)) or 1, down)
        return min(math.floor(width * (down / height)) or 1, across), down

    def fitted(self, rgb: np.ndarray) -> fit.Fitted:
        """Put a picture in the upper left of its canvas, black to the right of it and below.

        (h, w, 3) uint8 -> (rows * S, columns * S, 3) uint8"""
        height, width = rgb.shape[:2]
        rows, columns = self.grid(width, height)
        seen, affine = fit.stretch(rgb, self.size(width, height), BILINEAR)
        canvas = np.zeros((rows * self.side, columns * self.side, 3), np.uint8)
        canvas[: seen.shape[0], : seen.shape[1]] = seen
        return canvas, affine


@dataclass(frozen=True, slots=True)
class TileLayout:
    """Where the rows of a picture's tiles stand: those with a picture first, row by row of the canvas, then those of
    tiles that are not there, then the padding. The latter two are run as they were in training, and seen."""

    grid: int  # its number in the file's tables
    places: np.ndarray  # (rows * n, columns * n) int64: the row that stands for each patch of the canvas
    patches: np.ndarray  # (t * n * n,) int64: patches of the canvas, tile by tile
    n_seen: int  # t * L rows, the first ones, are of tiles with a picture
    tile: np.ndarray  # (R,) int64: the tile of each row, padding included

    @classmethod
    def of(cls, rows: int, columns: int, n: int, canvas: TileCanvas) -> "TileLayout":
        """Lay out a canvas of rows x columns tiles of n x n patches."""
        L, tiles = n * n + 1, np.arange(canvas.most)
        here = tiles[: rows * columns].reshape(rows, 1, columns, 1) * L + 1  # a class token comes first
        return cls(
            grid=canvas.grids().index((rows, columns)) + 1,
            places=(here + np.arange(n * n).reshape(1, n, 1, n)).reshape(rows * n, columns * n),
            patches=np.arange(rows * columns * n * n).reshape(rows, n, columns, n).swapaxes(1, 2).ravel(),
            n_seen=rows * columns * L,
            tile=np.concatenate([tiles.repeat(L), tiles.repeat(-L % PAD_TO)]),
        )

    def sees(self) -> Sees:
        """Say which rows see which: those of a picture see all, the others only those of the picture."""
        n = len(self.tile)
        ends = np.where(np.arange(n) < self.n_seen, n, self.n_seen)
        return replace(Sees.all(n), within=np.stack([np.zeros(n, np.int64), ends], 1))
