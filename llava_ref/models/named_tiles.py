"""Idefics3's tiles, each of which the text names by its row and column, with an overview behind them.

Everything follows from a picture's width and height: nothing is decoded. S the tower's picture size in pixels, N rows
of a tile, m of them along a side.
Laurençon et al. 2024, https://arxiv.org/abs/2408.12637, section 4.1; transformers 5.24,
models/idefics3/image_processing_pil_idefics3.py and processing_idefics3.py; llama.cpp b11549, tools/mtmd/mtmd.cpp and
mtmd-image.cpp (idefics3).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..images import fit
from ..images.resample import BICUBIC, LANCZOS, Order
from ..profiles import Quirks
from .config import VisionConfig

LONGEST = "clip.vision.preproc_image_size"
START, OVERVIEW, FIRST = "<fake_token_around_image>", "<global-img>", "<row_1_col_1>"
BLACK = (0, 0, 0)
MOST = 8  # tiles along a side
LARGEST = 4096  # pixels: transformers makes every picture as small (MAX_IMAGE_SIZE)

Size = tuple[int, int]  # width and height


@dataclass(frozen=True, slots=True)
class NamedTiles:
    """The rule by which a tower's pictures are cut into tiles."""

    side: int  # S
    m: int
    longest: int | None  # pixels of the longer side before it fills whole tiles; None: the picture's own
    order: Order
    aspect_again: bool  # the shorter side is computed once more when the longer one fills its tiles
    lone_tile: bool  # a picture of one tile has an overview beside it

    def sizes(self, width: int, height: int) -> tuple[Size, Size]:
        """Return the size at which a picture keeps its aspect, and that of the whole tiles made of it."""
        if self.longest is None:
            own = self._rounded(width), self._rounded(height)
            return own, own
        longest, aspect = self.longest, width / height
        wide = width >= height
        first = (longest, _even(int(longest / aspect))) if wide else (_even(int(longest * aspect)), longest)
        return first, self._filled(*first)

    def _rounded(self, n: int) -> int:
        tiles = np.float32(n) / np.float32(self.side)
        return max(1, int(np.floor(tiles + np.float32(0.5)))) * self.side

    def _filled(self, width: int, height: int) -> Size:
        """Return the size of the whole tiles that a picture of this size is stretched to."""
        if self.aspect_again:
            aspect = width / height
            if width >= height:
                height = int(self._up(width) / aspect)
            else:
                width = int(self._up(height) * aspect)
        return self._up(width), self._up(height)

    def _up(self, n: int) -> int:
        return -(-n // self.side) * self.side

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return rows and columns of a picture's tiles; none where the overview is all."""
        _, (across, down) = self.sizes(width, height)
        rows, columns = down // self.side, across // self.side
        return (0, 0) if rows * columns == 1 and not self.lone_tile else (rows, columns)

    def n_tiles(self, width: int, height: int) -> int:
        """Return the tiles of a picture, the overview among them."""
        rows, columns = self.grid(width, height)
        return rows * columns + 1

    def stretches(self, width: int, height: int) -> Iterator[str | int]:
        """Yield what stands for a picture in the sequence: the names of tiles, and numbers of rows."""
        rows, columns = self.grid(width, height)
        for row, column in np.ndindex(rows, columns):
            line = "\n" if row and not column else ""
            yield f"{line}{START}<row_{row + 1}_col_{column + 1}>"
            yield self.m**2
        yield ("\n\n" if rows else "") + START + OVERVIEW
        yield self.m**2
        yield START

    def places(self, width: int, height: int) -> np.ndarray:
        """Return the picture's row that stands for each square of each tile.  -> (tiles, m, m) int64"""
        n_tiles = self.n_tiles(width, height)
        return np.arange(n_tiles * self.m**2).reshape(n_tiles, self.m, self.m)

    def fitted(self, rgb: np.ndarray) -> list[fit.Fitted]:
        """Return what the tower sees of a picture, tile by tile.  (height, width, 3) uint8 -> (S, S, 3) uint8 each"""
        height, width = rgb.shape[:2]
        first, size = self.sizes(width, height)
        if self.longest is None:
            whole = fit.resize_pad(rgb, size, BLACK, BICUBIC)
            overview = fit.stretch(rgb, self.side, BICUBIC, "horizontal")
        else:
            whole = fit.stretch_again(fit.stretch(rgb, first, LANCZOS, self.order), size, LANCZOS, self.order)
            overview = fit.stretch_again(whole, self.side, LANCZOS, self.order)
        return [*(fit.cut(whole, self.side) if self.grid(width, height)[0] else []), overview]

    def about(self, quirks: Quirks) -> dict[str, Any]:
        """Return what the keys mean, as JSON."""
        names = ("resize_order", "tile_grid", "lone_tile", "longest_edge")
        return {
            "tokens_least": self.n_tiles(1, LARGEST) * self.m**2,
            "longest_edge_pixels": self.longest,
            **{name: getattr(quirks, name) for name in names},
        }


def read(file: GGUFFile, c: VisionConfig, quirks: Quirks, m: int) -> NamedTiles:
    """Read the key of the longer side. Raises GGUFError for one that makes no tiles, or too many."""
    longest = file.integer(LONGEST, 0, LARGEST, 0) or None
    if longest is None and quirks.longest_edge == "fourfold":
        longest = 4 * c.image_size
    if longest is not None and longest > MOST * c.image_size:
        problem = f"{longest} is more than {MOST} tiles of {c.image_size} pixels"
        raise GGUFError(file.path, LONGEST, problem)
    return NamedTiles(
        side=c.image_size,
        m=m,
        longest=longest,
        order=quirks.resize_order,
        aspect_again=quirks.tile_grid == "aspect",
        lone_tile=quirks.lone_tile == "both",
    )


def _even(n: int) -> int:
    return max(1, n + n % 2)
