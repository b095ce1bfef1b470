"""InternVL's tiles ("dynamic resolution"): a picture becomes a grid of up to so many tiles, with an overview behind.

Everything follows from a picture's width and height: nothing is decoded. S the tower's picture size in pixels, N rows
of a tile, m of them along a side.
Chen et al. 2024, https://arxiv.org/abs/2404.16821, section 3.2; transformers 5.24,
models/got_ocr2/image_processing_pil_got_ocr2.py, which InternVLProcessor uses; llama.cpp b11549,
tools/mtmd/mtmd-image.cpp (llava_uhd) and clip.cpp (internvl).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..images import fit
from ..images.resample import BICUBIC, Order
from ..profiles import Quirks
from .anyres import BLACK, MOST, fullest
from .config import VisionConfig

LEAST_TILES, MOST_TILES = "clip.vision.preproc_min_tiles", "clip.vision.preproc_max_tiles"
KEYS = (LEAST_TILES, MOST_TILES)

Size = tuple[int, int]  # width and height


@dataclass(frozen=True, slots=True)
class DynamicTiles:
    """The rule by which a tower's pictures are cut into tiles."""

    sizes: tuple[Size, ...]  # of the pictures that tiles are cut from
    side: int  # S
    m: int
    by_aspect: bool
    always: bool  # small pictures are cut too
    number: type[np.floating[Any]]  # in which sizes are compared
    stretched: bool
    order: Order
    lone_tile: bool  # a picture of one tile has an overview beside it

    def size(self, width: int, height: int) -> Size | None:
        """Return the size at which a picture is cut into tiles. None where it is seen whole only."""
        if not self.always and max(width, height) <= self.side:
            return None
        choose = self._closest if self.by_aspect else self._fullest
        size = choose(width, height)
        return None if size == (self.side, self.side) and not self.lone_tile else size

    def _fullest(self, width: int, height: int) -> Size:
        return fullest(self.sizes, width, height, self.number)

    def _closest(self, width: int, height: int) -> Size:
        """Choose the size whose aspect is closest to a picture's; of equals a larger one while the picture has more
        than half of its pixels."""
        best, least = self.sizes[0], float("inf")
        for size in self.sizes:
            distance = abs(width / height - size[0] / size[1])
            if distance < least or distance == least and 2 * width * height > size[0] * size[1]:
                best, least = size, distance
        return best

    def n_tiles(self, width: int, height: int) -> int:
        """Return the tiles of a picture, the overview among them."""
        size = self.size(width, height)
        return 1 if size is None else 1 + size[0] * size[1] // self.side**2

    def places(self, width: int, height: int) -> np.ndarray:
        """Return the picture's row that stands for each square of each tile.  -> (tiles, m, m) int64"""
        n_tiles = self.n_tiles(width, height)
        return np.arange(n_tiles * self.m**2).reshape(n_tiles, self.m, self.m)

    def fitted(self, rgb: np.ndarray) -> list[fit.Fitted]:
        """Return what the tower sees of a picture, tile by tile.  (height, width, 3) uint8 -> (S, S, 3) uint8 each"""
        size, overview = self.size(rgb.shape[1], rgb.shape[0]), fit.stretch(rgb, self.side, BICUBIC, self.order)
        if size is None:
            return [overview]
        if self.stretched:
            whole = fit.stretch(rgb, size, BICUBIC, self.order)
        else:
            whole = fit.resize_pad(rgb, size, BLACK, BICUBIC, self.order)
        return [*fit.cut(whole, self.side), overview]

    def about(self, quirks: Quirks) -> dict[str, Any]:
        """Return what the keys mean, as JSON."""
        names = ("tiling", "tile_shape", "fit", "resize_order", "lone_tile")
        counts = [self.n_tiles(*size) for size in self.sizes]
        return {
            "tokens_per_image": max(counts) * self.m**2,
            "tokens_least": min(counts) * self.m**2,
            "tile_sizes": [list(size) for size in self.sizes],
            **{name: getattr(quirks, name) for name in names},
        }


def read(file: GGUFFile, c: VisionConfig, quirks: Quirks, m: int) -> DynamicTiles:
    """Read the keys of `KEYS`. Raises GGUFError."""
    most = file.integer(MOST_TILES, 1, MOST, 12)
    least = file.integer(LEAST_TILES, 1, most, 1)
    by_aspect = quirks.tile_shape == "aspect"
    grids = _grids(least, most) if by_aspect else _grids_of_llama_cpp(least, most)
    if not grids:
        problem = f"{least}, of which llama.cpp makes no grid of up to {most} tiles"
        raise GGUFError(file.path, LEAST_TILES, problem)
    return DynamicTiles(
        sizes=tuple((across * c.image_size, down * c.image_size) for across, down in grids),
        side=c.image_size,
        m=m,
        by_aspect=by_aspect,
        always=quirks.tiling == "always",
        number=np.float64 if quirks.tiling == "always" else np.float32,
        stretched=quirks.fit == "stretch",
        order=quirks.resize_order,
        lone_tile=quirks.lone_tile == "both",
    )


def _grids(least: int, most: int) -> list[tuple[int, int]]:
    """Return columns and rows of all grids of `least` to `most` tiles, small ones first."""
    sides = range(1, most + 1)
    grids = [(across, down) for across in sides for down in sides if least <= across * down <= most]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def _grids_of_llama_cpp(least: int, most: int) -> list[tuple[int, int]]:
    """Return the same as llama.cpp makes them: no side is shorter than `least`, and narrow ones are first."""
    return [(across, down) for across in range(least, most + 1) for down in range(least, most // across + 1)]
