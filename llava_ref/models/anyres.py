"""LLaVA-1.6's tiles ("anyres"): which picture is cut into which tiles, and where their rows stand in the sequence.

Everything follows from a picture's width and height: nothing is decoded. N = n * n rows of a tile, n along a side,
S the tower's picture size in pixels.
Liu et al. 2024, https://llava-vl.github.io/blog/2024-01-30-llava-next; transformers 5.24, LlavaNextImageProcessorPil
and LlavaNextModel.pack_image_features; llama.cpp b11549, tools/mtmd/mtmd-image.cpp (llava_uhd) and mtmd.cpp.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import GGUFError, ParameterError
from ..gguf.file import GGUFFile
from ..images import fit
from ..images.resample import BICUBIC, Order
from ..ops.protocol import Array, Ops
from ..profiles import Quirks
from .config import VisionConfig

PINPOINTS = "clip.vision.image_grid_pinpoints"
MERGE = "clip.vision.mm_patch_merge_type"
ASPECT = "clip.vision.image_aspect_ratio"
KEYS = (PINPOINTS, MERGE, ASPECT)
NEWLINES = ("v.image_newline", "model.image_newline")  # the second as files of 2024 have it
BLACK = (0, 0, 0)
LONG = 65_535  # pixels of the thinnest picture's side
MOST = 64  # sizes in one file, and tiles in one picture


@dataclass(frozen=True, slots=True)
class Anyres:
    """The rule by which a tower's pictures are cut into tiles and put together again."""

    sizes: tuple[tuple[int, int], ...]  # width and height of the pictures that tiles are cut from; none: nothing is cut
    side: int  # S
    n: int
    joined: bool  # the tiles' rows are one grid, without padding, each line of it ended by a newline
    overview_first: bool
    always: bool  # small pictures are cut too
    number: type[np.floating[Any]]  # in which sizes are compared

    def size(self, width: int, height: int) -> tuple[int, int] | None:
        """Return the size at which a picture is cut into tiles. None where it is seen whole only."""
        if not self.sizes or not self.always and max(width, height) <= self.side:
            return None
        return fullest(self.sizes, width, height, self.number)

    def n_tiles(self, width: int, height: int) -> int:
        """Return the tiles of a picture, the overview among them."""
        size = self.size(width, height)
        return 1 if size is None else 1 + size[0] * size[1] // self.side**2

    def order(self, width: int, height: int) -> np.ndarray:
        """Return for each row of a picture its number among the rows of all tiles, one tile after the other; -1 is a
        newline.  -> (rows,) int64"""
        N, size = self.n**2, self.size(width, height)
        if size is None:
            return np.arange(N)
        across, down = (side // self.side for side in size)
        tiles = np.arange(across * down * N).reshape(down, across, self.n, self.n)
        rest = self._grid(tiles, width, height) if self.joined else tiles
        overview = np.arange(N)
        if self.overview_first:
            return np.concatenate([overview, np.where(rest < 0, rest, rest + N).ravel()])
        return np.concatenate([rest.ravel(), tiles.size + overview])

    def _grid(self, tiles: np.ndarray, width: int, height: int) -> np.ndarray:
        """Join tiles (down, across, n, n) to one grid, cut off the lines that are padding alone, and end each line with
        a newline."""
        down, across, n, _ = tiles.shape
        grid = tiles.swapaxes(1, 2).reshape(down * n, across * n)
        lines, columns = grid.shape
        if width / height > columns / lines:
            cut = (lines - int(round(height * (columns / width), 7))) // 2
            grid = grid[cut : lines - cut]
        else:
            cut = (columns - int(round(width * (lines / height), 7))) // 2
            grid = grid[:, cut : columns - cut]
        return np.pad(grid, ((0, 0), (0, 1)), constant_values=-1)

    def places(self, width: int, height: int) -> np.ndarray:
        """Return the picture's row that stands for each patch of each tile, -1: none.  -> (tiles, n, n) int64"""
        order, n_tiles = self.order(width, height), self.n_tiles(width, height)
        places = np.full(n_tiles * self.n**2, -1)
        places[order[order >= 0]] = np.flatnonzero(order >= 0)
        return places.reshape(n_tiles, self.n, self.n)

    def fitted(self, rgb: np.ndarray) -> list[fit.Fitted]:
        """Return what the tower sees of a picture, tile by tile.  (height, width, 3) uint8 -> (S, S, 3) uint8 each"""
        order: Order = "pillow" if self.always else "horizontal"
        size, overview = self.size(rgb.shape[1], rgb.shape[0]), [fit.stretch(rgb, self.side, BICUBIC, order)]
        tiles = [] if size is None else fit.cut(fit.resize_pad(rgb, size, BLACK, BICUBIC, order), self.side)
        return [*overview, *tiles] if self.overview_first else [*tiles, *overview]

    def pack(self, rows: Array, newline: Array | None, width: int, height: int, ops: Ops) -> Array:
        """Return the rows of a picture of those of its tiles, one tile after the other, and of the newline (1, D).

        Raises ParameterError where there are not as many as the tiles have."""
        if not self.sizes:
            return rows
        order, n_tiles = self.order(width, height), self.n_tiles(width, height)
        if rows.shape[0] != n_tiles * self.n**2:
            problem = f"{rows.shape[0] / self.n**2:g} tiles, expected {n_tiles} for a picture of {width} x {height}"
            raise ParameterError("encode", "pixels", problem)
        return ops.concat([rows] if newline is None else [rows, newline])[order]

    def about(self, quirks: Quirks) -> dict[str, Any]:
        """Return what the keys mean, as JSON."""
        names = ("tiling", "overview", "tiles")
        return {
            "tokens_least": min(len(self.order(*size)) for size in [*self.sizes, (1, 1), (1, LONG), (LONG, 1)]),
            "tile_sizes": [list(size) for size in self.sizes],
            **{name: getattr(quirks, name) for name in names},
        }

    def most(self) -> int:
        """Return the rows of the largest picture."""
        return max(len(self.order(*size)) for size in [*self.sizes, (self.side, self.side)])


def fullest(
    sizes: Sequence[tuple[int, int]], width: int, height: int, number: type[np.floating[Any]]
) -> tuple[int, int]:
    """Choose the size that keeps most of a picture's pixels, then the one with the least padding, then the first.

    `number`: the type in which sizes are compared."""

    def cost(size: tuple[int, int]) -> tuple[int, int]:
        w, h = number(width), number(height)
        scale = min(number(size[0]) / w, number(size[1]) / h)
        kept = min(int(w * scale) * int(h * scale), width * height)
        return -kept, size[0] * size[1] - kept

    return min(sizes, key=cost)


def read(file: GGUFFile, c: VisionConfig, quirks: Quirks, n: int) -> Anyres:
    """Read the keys of `KEYS`; without them a picture is one tile. Raises GGUFError."""
    sizes = _sizes(file, c.image_size)
    _check(file, bool(sizes))
    merge = file.string(MERGE, "") or ("spatial_unpad" if newline_of(file) in file.tensors else "flat")
    float64 = quirks.tiling == "always"
    return Anyres(
        sizes=sizes,
        side=c.image_size,
        n=n,
        joined=bool(sizes) and merge == "spatial_unpad" and quirks.tiles == "joined",
        overview_first=quirks.overview == "first",
        always=float64,
        number=np.float64 if float64 else np.float32,
    )


def untiled(c: VisionConfig) -> Anyres:
    """Return the rule of a tower that sees every picture as one tile."""
    return Anyres((), c.image_size, c.grid, False, True, True, np.float64)


def newline_of(file: GGUFFile) -> str:
    """Return the name of the newline row, by which the file has it if it does."""
    return next((name for name in NEWLINES if name in file.tensors), NEWLINES[0])


def _sizes(file: GGUFFile, side: int) -> tuple[tuple[int, int], ...]:
    numbers = file.array(PINPOINTS, "int", None) or []
    sizes = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    if len(numbers) % 2 or len(sizes) > MOST:
        raise GGUFError(file.path, PINPOINTS, f"{len(numbers)} numbers, expected at most {MOST} widths and heights")
    for width, height in sizes:
        if width < side or height < side or width % side or height % side or width * height > MOST * side**2:
            problem = f"{width} x {height} is not made of 1 to {MOST} tiles of {side} x {side}"
            raise GGUFError(file.path, PINPOINTS, problem)
    return sizes


def _check(file: GGUFFile, tiled: bool) -> None:
    """Raise GGUFError where the two keys beside the sizes ask for what is not done."""
    for key, accepted in ((MERGE, ("flat", "spatial_unpad") if tiled else ("flat",)),
                          (ASPECT, ("anyres",) if tiled else ("pad",))):  # fmt: skip
        if file.string(key, "") not in ("", *accepted):
            expected = " or ".join(map(repr, accepted))
            kind = "tiled pictures" if tiled else f"no {PINPOINTS}"
            raise GGUFError(file.path, key, f"{file.string(key)!r} is not supported with {kind}, expected {expected}")
