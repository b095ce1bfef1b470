"""What an answer owes to each part of a picture: the part is covered and the answer scored again.

A window of the picture that the tower sees is painted in the source's median colour, everything is computed anew, and
the window moves on (Zeiler, Fergus 2013, https://arxiv.org/abs/1311.2901, section 4.2). Pixels are covered, and not
rows behind the tower, because the tower spreads what it sees: on the embedded model an answer survives when all rows of
a shape are replaced by those of a blank picture. For the same reason windows overlap: half a red square is enough to
say that it is red. What it cannot tell: parts that say the same stand in for each other, and neither then seems to
matter; and what is painted over is itself something to see.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import ParameterError
from ..generation.request import Request
from ..generation.units import Part
from ..model import Llava
from ..tracing.distance import log_softmax
from ..tracing.trace import At

MOST = 8  # cells along a side: 64 runs


def ablation(
    model: Llava, request: Request, answer: Sequence[int], *, image: int = 0, cells: int | None = None, window: int = 3
) -> np.ndarray:
    """(A, cells, cells) float32: nats of log-probability that each token of the answer loses with a window of the
    picture covered, by the cell in its middle, from the top left, row by row. Below 0: the token is likelier without.

    The answer is given token by token as it was. `cells`: along a side, by default 8 or as many as patches; one run
    each. `window`: cells along a side of the window, an odd number."""
    grid = picture_grid(model)
    cells = min(grid, MOST) if cells is None else cells
    if not 1 <= cells <= grid:
        raise ParameterError("cells", str(cells), f"expected 1 to {grid}, the patches along a side")
    if window < 1 or window % 2 == 0:
        raise ParameterError("window", str(window), "expected an odd number of cells from 1")
    parts = model.parts(request)
    at = [i for i, part in enumerate(parts) if isinstance(part, np.ndarray)][image]
    whole = _score(model, parts, answer)
    lost = np.empty((len(answer), cells, cells), np.float32)
    for y, x in np.ndindex(cells, cells):
        covered = _covered(model, request.images[image].rgb, window_of_patches(grid, cells, (y, x), window))
        lost[:, y, x] = whole - _score(model, [*parts[:at], covered, *parts[at + 1 :]], answer)
    return lost


def _score(model: Llava, parts: Sequence[Part], answer: Sequence[int]) -> np.ndarray:
    """Log-probability (A,) of each token of the answer, given those before it."""
    logprobs = log_softmax(model.forward([*parts, list(answer[:-1])])[-len(answer) :])
    return np.asarray(logprobs[np.arange(len(answer)), list(answer)])


def _covered(model: Llava, rgb: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Rows (N, D) of a picture (height, width, 3) with some of its patches, a (grid, grid) mask, painted over."""
    colour = np.median(rgb.reshape(-1, 3), 0).astype(np.uint8)

    def cover(seen: np.ndarray, at: At) -> np.ndarray:
        size = seen.shape[0] // len(patches)
        return np.where(patches.repeat(size, 0).repeat(size, 1)[..., None], colour, seen)

    with model.intervene({"image.seen": cover}):
        return model.encode_image(rgb)


def window_of_patches(grid: int, cells: int, middle: tuple[int, int], window: int) -> np.ndarray:
    """(grid, grid) bool: the patches of the cells around one. Cells differ by one patch along a side at most."""
    along = np.arange(grid) * cells // grid  # the cell that each patch belongs to
    rows, columns = (np.abs(along - cell) <= window // 2 for cell in middle)
    return np.asarray(rows[:, None] & columns[None, :])


def picture_grid(model: Llava) -> int:
    """Return the patches along a side. Raises ParameterError without an mmproj file."""
    return model.tower.config.grid
