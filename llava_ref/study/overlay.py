"""Lay numbers of patches over the source picture, back through resize, padding and cropping.

Every source pixel gets the number of its patch, without smoothing: a patch is the finest detail that the model
distinguishes. Padding is not part of the picture and is not shown; pixels that were cropped away get no colour.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..images.fit import Preprocessed, Tile
from ..scale import laid

BAR, MARGIN = 14, 10  # pixels: height of the scale, and the distance between the elements of a panel
FONT = ImageFont.load_default(13)


@dataclass(frozen=True, slots=True)
class Measure:
    """Says how the numbers of a map are written: times `factor`, in `unit`; the end of a scale is at least `least`."""

    unit: str
    factor: float
    least: float


SHARE = Measure("% of the attention", 100, 0.01)
LOST = Measure("nats", 1, 0.1)


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


def heat(rgb: np.ndarray, values: np.ndarray, most: float) -> np.ndarray:
    """Lay numbers (H, W) over a picture (H, W, 3), which stays in its colours; `most`: the end of the scale."""
    return laid(rgb, values / (most or 1.0))


def panel(rgb: np.ndarray, caption: str, values: np.ndarray | None, measure: Measure, side: int = 360) -> Image.Image:
    """Draw a picture with its caption, or one map over it with a scale and its unit; the longer side is `side`.

    The scale goes from 0, or the smallest number if that is below 0, to the largest, but at least to the least."""
    numbers = np.zeros(1) if values is None else values
    low, high = float(np.nanmin(numbers, initial=0.0)), float(np.nanmax(numbers, initial=measure.least))
    most = max(high, -low)
    over = Image.fromarray(rgb if values is None else heat(rgb, values, most))
    wide, tall = (max(1, round(n * side / max(over.size))) for n in over.size)
    over = over.resize((wide, tall), Image.Resampling.NEAREST)
    page = Image.new("RGB", (max(over.width, side) + 2 * MARGIN, over.height + BAR + 5 * MARGIN + 32), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), caption, fill="black", font=FONT)
    page.paste(over, (MARGIN, 2 * MARGIN + 16))
    if values is None:
        return page
    top = over.height + 3 * MARGIN + 16
    ground = np.repeat([255, 17], BAR // 2)[:, None, None]  # a scale shows over white and over black
    page.paste(Image.fromarray(laid(ground, np.linspace(low, high, side)[None] / most)), (MARGIN, top))
    draw.text((MARGIN, top + BAR + 2), f"{low * measure.factor:.3g}", fill="black", font=FONT)
    text = f"{high * measure.factor:.3g} {measure.unit}"
    draw.text((MARGIN + side - draw.textlength(text, FONT), top + BAR + 2), text, fill="black", font=FONT)
    return page


def in_a_row(panels: list[Image.Image]) -> Image.Image:
    """Join pictures in a row."""
    page = Image.new("RGB", (sum(p.width for p in panels), max(p.height for p in panels)), "white")
    at = 0
    for part in panels:
        page.paste(part, (at, 0))
        at += part.width
    return page
