"""Measure how much an answer depends on each part of a picture: cover the part and score the answer again.

A window of the picture that the tower gets is painted in the source's median colour, everything is computed again, and
the window moves on (Zeiler, Fergus 2013, https://arxiv.org/abs/1311.2901, section 4.2). Pixels are covered, not the
rows behind the tower, because the tower spreads information: on the embedded model an answer survives when all rows of
a shape are replaced by those of a blank picture. Windows overlap for the same reason: half a red square is enough to
say that it is red. The method has two limits: parts with the same content replace each other, so that neither seems to
matter; and the covered area is itself a visible object.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import ParameterError
from ..generation.request import Request
from ..generation.units import Part
from ..images.fit import Preprocessed, Tile
from ..model import Llava
from ..tracing.distance import log_softmax
from ..tracing.trace import At
from .overlay import picked, points

MOST = 8  # cells along a side by default: 64 runs


def ablation(
    model: Llava, request: Request, answer: Sequence[int], *, image: int = 0, cells: int | None = None, window: int = 3
) -> np.ndarray:
    """Measure the loss of log-probability, in nats, of each token of the answer with a window of the picture covered.

    (A, cells, cells) float32, by the cell in the middle of the window, from the top left, row by row; below 0 if the
    token is likelier with the window covered. The answer is teacher-forced. `cells` along a side, by default 8 or the
    number of patches if that is less; each takes one run. `window`: cells along a side of the window, an odd number.
    Raises ParameterError."""
    grid = request.spans[image].grid
    cells = min(*grid, MOST) if cells is None else cells
    if not 1 <= cells <= min(grid):
        raise ParameterError("cells", str(cells), f"expected 1 to {min(grid)}, the patches along a side")
    if window < 1 or window % 2 == 0:
        raise ParameterError("window", str(window), "expected an odd number of cells from 1")
    rows = [model.encode_image(picture.rgb) for picture in request.images]
    uncovered = _score(model, request.parts(rows), answer)
    lost = np.empty((len(answer), cells, cells), np.float32)
    for y, x in np.ndindex(cells, cells):
        covered = _covered(model, request.images[image].rgb, window_of_patches(grid, cells, (y, x), window))
        lost[:, y, x] = uncovered - _score(model, request.parts([*rows[:image], covered, *rows[image + 1 :]]), answer)
    return lost


def _score(model: Llava, parts: Sequence[Part], answer: Sequence[int]) -> np.ndarray:
    """Return the log-probability (A,) of each token of the answer, given the tokens before it."""
    logprobs = log_softmax(model.forward([*parts, list(answer[:-1])])[-len(answer) :])
    return np.asarray(logprobs[np.arange(len(answer)), list(answer)])


def _covered(model: Llava, rgb: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Encode a picture (height, width, 3) with the patches of a mask (gy, gx) painted over; return rows (N, D)."""
    colour = np.median(rgb.reshape(-1, 3), 0).astype(np.uint8)

    picture = model.tower.preprocess(rgb)

    def cover(seen: np.ndarray, at: At) -> np.ndarray:
        return np.where(under(patches, picture, picture.tiles[at.run], *seen.shape[:2])[..., None], colour, seen)

    with model.intervene({"image.seen": cover}):
        return model.encode_image(rgb)


def under(patches: np.ndarray, picture: Preprocessed, tile: Tile, rows: int, columns: int) -> np.ndarray:
    """Tell which of rows x columns cells of a tile lie under a mask (gy, gx) over the tile that shows all."""
    return np.asarray(picked(patches, picture.whole, *points(tile, rows, columns)) == 1)


def rows_under(patches: np.ndarray, picture: Preprocessed) -> list[int]:
    """Return the picture's rows that lie under a mask (gy, gx) over the tile that shows all of it, in order."""
    found = [tile.rows[under(patches, picture, tile, *tile.rows.shape)] for tile in picture.tiles]
    return sorted(int(row) for rows in found for row in rows if row >= 0)


def window_of_patches(grid: tuple[int, int], cells: int, middle: tuple[int, int], window: int) -> np.ndarray:
    """Mark the patches of the cells around one cell, of cells x cells: (gy, gx) bool.

    The numbers of patches along the sides of two cells differ by one at most."""
    # `along`: the cell that each patch belongs to
    along = [np.arange(patches) * cells // patches for patches in grid]
    rows, columns = (np.abs(cell - at) <= window // 2 for cell, at in zip(along, middle, strict=True))
    return np.asarray(rows[:, None] & columns[None, :])
