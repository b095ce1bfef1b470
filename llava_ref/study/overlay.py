"""Lay numbers of patches over the source picture, back through resize, padding and cropping.

Every source pixel gets the number of its patch, without smoothing: a patch is the finest detail that the model
distinguishes. Padding is not part of the picture and is not shown; pixels that were cropped away get no colour.
"""

import numpy as np
from PIL import Image, ImageDraw

from ..images.fit import Preprocessed, Tile

ANCHORS = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
"""Colours from low to high, even steps apart, each lighter than the one before: points of matplotlib's `inferno`."""
GREY = 0.35  # share of the grey picture in the mixture with the colours
BAR, MARGIN = 14, 10  # pixels: height of the colour bar, and the distance between the elements of a panel


def to_source(grid: np.ndarray, picture: Preprocessed) -> np.ndarray:
    """Map numbers of cells over the tile that shows all of a picture (gy, gx) to the source's pixels (height, width),
    float32.

    Pixels that the model did not get are NaN."""
    return picked(grid, picture.whole, *pixels(picture))


def pixels(picture: Preprocessed) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the centres of the source's pixels, (width,) and (height,)."""
    width, height = picture.source
    return np.arange(width) + 0.5, np.arange(height) + 0.5


def picked(grid: np.ndarray, tile: Tile, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the numbers (..., gy, gx) of a tile's cells at points of the source, (..., y, x) float32; outside: NaN."""
    (height, width), a = tile.seen.shape[:2], tile.affine
    columns = np.floor((x - a.shift_x) / a.scale_x * grid.shape[-1] / width).astype(int)
    rows = np.floor((y - a.shift_y) / a.scale_y * grid.shape[-2] / height).astype(int)
    inside = ((rows >= 0) & (rows < grid.shape[-2]))[:, None] & ((columns >= 0) & (columns < grid.shape[-1]))[None]
    values = grid[..., np.clip(rows, 0, grid.shape[-2] - 1), :][..., np.clip(columns, 0, grid.shape[-1] - 1)]
    return np.where(inside, values, np.nan).astype(np.float32)


def points(tile: Tile, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the source's x and y of the centres of rows x columns cells over a tile, (columns,) and (rows,)."""
    (height, width), a = tile.seen.shape[:2], tile.affine
    x = (np.arange(columns, dtype=np.float64) + 0.5) * width / columns
    y = (np.arange(rows, dtype=np.float64) + 0.5) * height / rows
    return x * a.scale_x + a.shift_x, y * a.scale_y + a.shift_y


def over_tiles(values: np.ndarray, picture: Preprocessed, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lay the numbers of a picture's rows (..., N) over points of the source: (..., y, x) float32.

    A point that several tiles show has the sum of their rows' numbers; one that none shows is NaN."""
    padded = np.concatenate([values, np.full((*values.shape[:-1], 1), np.nan)], -1)  # row -1: none
    found = np.stack([picked(padded[..., tile.rows], tile, x, y) for tile in picture.tiles])
    return np.where(np.isnan(found).all(0), np.nan, np.nansum(found, 0)).astype(np.float32)


def over_whole(values: np.ndarray, picture: Preprocessed) -> np.ndarray:
    """Lay the numbers of a picture's rows (..., N) over a grid on the tile that shows all of it: (..., gy, gx).

    The grid is that of the tile's rows, twice as fine where there are further tiles. Cells in padding that has no row
    are 0."""
    finer = 1 if len(picture.tiles) == 1 else 2
    rows, columns = (finer * n for n in picture.whole.rows.shape)
    return np.nan_to_num(over_tiles(values, picture, *points(picture.whole, rows, columns)))


def colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map values (...) to RGB uint8 (..., 3): `low` is darkest, `high` lightest; values outside are clipped."""
    spread = (high - low) or 1.0
    at = np.clip((np.nan_to_num(values, nan=low) - low) / spread, 0, 1) * (len(ANCHORS) - 1)
    table, below = np.array(ANCHORS, np.float64), np.minimum(at.astype(int), len(ANCHORS) - 2)
    part = (at - below)[..., None]
    return np.asarray(np.rint(table[below] * (1 - part) + table[below + 1] * part), np.uint8)


def heat(rgb: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colour a grey version of a picture (H, W, 3) by numbers (H, W); leave pixels whose number is NaN unchanged."""
    grey = rgb.astype(np.float64).mean(-1, keepdims=True)
    mixed = GREY * grey + (1 - GREY) * colours(values, low, high)
    coloured = np.isfinite(values)[..., None]
    return np.asarray(np.where(coloured, np.rint(mixed), rgb), np.uint8)


def panel(rgb: np.ndarray, values: np.ndarray, caption: str, unit: str, least: float, side: int = 360) -> Image.Image:
    """Draw one map with its caption, a colour bar and the numbers at its ends; the picture's longer side is `side`.

    The scale goes from 0, or the smallest number if that is below 0, to the largest, but at least to `least`."""
    low, high = float(np.nanmin(values, initial=0.0)), float(np.nanmax(values, initial=least))
    over = Image.fromarray(heat(rgb, values, low, high))
    wide, tall = (max(1, round(n * side / max(over.size))) for n in over.size)
    over = over.resize((wide, tall), Image.Resampling.NEAREST)
    width = max(over.width, side) + 2 * MARGIN
    page = Image.new("RGB", (width, over.height + BAR + 5 * MARGIN + 24), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), caption, fill="black")
    page.paste(over, (MARGIN, 2 * MARGIN + 12))
    top = over.height + 3 * MARGIN + 12
    steps = np.linspace(low, high, side)[None].repeat(BAR, 0)
    page.paste(Image.fromarray(colours(steps, low, high)), (MARGIN, top))
    draw.text((MARGIN, top + BAR + 2), f"{low:.3g}", fill="black")
    text = f"{high:.3g} {unit}"
    draw.text((MARGIN + side - draw.textlength(text), top + BAR + 2), text, fill="black")
    return page


def in_a_row(panels: list[Image.Image]) -> Image.Image:
    """Join pictures in a row."""
    page = Image.new("RGB", (sum(p.width for p in panels), max(p.height for p in panels)), "white")
    at = 0
    for part in panels:
        page.paste(part, (at, 0))
        at += part.width
    return page
