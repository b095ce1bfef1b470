"""Numbers over the patches of a picture, laid over the picture itself: through resize and padding back to the source.

Every source pixel has the number of the patch it went into, without smoothing: a patch is all the model tells apart.
Padding is not of the picture and is not shown; what was cropped away is hatched. The picture is pale and grey, so that
colour means a number: none at 0, the stronger the further from it, one hue above 0 and another below.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..preprocess import Preprocessed

Colour = tuple[int, int, int]
VIOLET, ORANGE, BLUE = (104, 43, 194), (205, 75, 10), (20, 98, 200)
STRONGEST = 0.85  # opacity of the largest number
PALE, CONTRAST = 245, 0.45  # white of the pale picture, and what is left of its contrast
SIDE, BAR, MARGIN, LINE = 480, 16, 16, 22


@dataclass(frozen=True, slots=True)
class Scale:
    """What the colours of a map mean. `size` is the number that has the strongest colour, on either side of 0."""

    size: float
    least: float
    """The smallest and the largest number of the map."""
    most: float
    unit: str
    above: Colour
    below: Colour = BLUE

    @property
    def ends(self) -> tuple[float, float]:
        """Of the colour bar; it has no part for numbers that would be too faint to see."""
        seen = -self.size / 100
        return (self.least if self.least < seen else 0.0), (0.0 if self.most <= 0 and self.least < seen else self.size)


def scale(values: np.ndarray, unit: str, floor: float, above: Colour) -> Scale:
    """Up to the number furthest from 0, but at least to `floor`, below which nothing worth a colour happens. NaN is
    no number."""
    found = values[np.isfinite(values)]
    least, most = (float(found.min()), float(found.max())) if found.size else (0.0, 0.0)
    return Scale(max(-least, most, floor), least, most, unit, above)


def to_source(grid: np.ndarray, seen: Preprocessed) -> np.ndarray:
    """Numbers of cells over the model's picture, (gy, gx), to the source's pixels, (height, width) float32; NaN where a
    pixel was not seen."""
    width, height = seen.source
    size = seen.seen.shape[0]
    across, down = (np.arange(n, dtype=np.float64) + 0.5 for n in (width, height))
    x = (across - seen.affine.shift_x) / seen.affine.scale_x * grid.shape[1] / size
    y = (down - seen.affine.shift_y) / seen.affine.scale_y * grid.shape[0] / size
    rows, columns = np.floor(y).astype(int), np.floor(x).astype(int)
    inside = ((rows >= 0) & (rows < grid.shape[0]))[:, None] & ((columns >= 0) & (columns < grid.shape[1]))[None]
    values = grid[np.clip(rows, 0, grid.shape[0] - 1)][:, np.clip(columns, 0, grid.shape[1] - 1)]
    return np.where(inside, values, np.nan).astype(np.float32)


def of_picture(n: int, seen: Preprocessed) -> np.ndarray:
    """(n, n) float64: how much of each cell's area is of the source, 0 to 1; the rest is padding."""
    size, (width, height) = seen.seen.shape[0], seen.source
    edges = np.linspace(0, size, n + 1)
    x, y = edges * seen.affine.scale_x + seen.affine.shift_x, edges * seen.affine.scale_y + seen.affine.shift_y
    parts = [np.diff(np.clip(at, 0, end)) / np.diff(at) for at, end in ((y, height), (x, width))]
    return np.asarray(parts[0][:, None] * parts[1][None, :])


def pale(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to float64 (H, W, 1): the picture as pale grey."""
    grey = rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return (PALE - CONTRAST * (255 - grey))[..., None]


def tint(under: np.ndarray, values: np.ndarray, s: Scale) -> np.ndarray:
    """Colours of numbers (...) over grey (..., 1): (..., 3) float64. NaN leaves what is under it."""
    part = np.clip(np.nan_to_num(values)[..., None] / s.size, -1, 1)
    opacity = STRONGEST * np.abs(part)
    hue = np.where(part > 0, np.array(s.above, np.float64), np.array(s.below, np.float64))
    return np.asarray(under * (1 - opacity) + hue * opacity)


def heat(rgb: np.ndarray, values: np.ndarray, s: Scale) -> np.ndarray:
    """The picture (H, W, 3) uint8 under the colours of its numbers (H, W); hatched where there are none."""
    mixed = tint(pale(rgb), values, s)
    down, across = np.indices(values.shape)
    stripe = max(2, max(values.shape) // 80)
    hatched = (~np.isfinite(values) & ((down + across) // stripe % 3 == 0))[..., None]
    return np.asarray(np.rint(np.where(hatched, mixed * 0.75, mixed)), np.uint8)


def panel(rgb: np.ndarray, values: np.ndarray, caption: str, s: Scale) -> Image.Image:
    """One map with its caption, its colours, and the numbers they stand for."""
    page, draw, top = _page(heat(rgb, values, s), caption)
    low, high = s.ends
    steps = np.linspace(low, high, SIDE)[None].repeat(BAR, 0)
    colours = tint(np.full((*steps.shape, 1), float(PALE)), steps, s)
    page.paste(Image.fromarray(np.rint(colours).astype(np.uint8)), (MARGIN, top))
    draw.rectangle((MARGIN, top, MARGIN + SIDE - 1, top + BAR - 1), outline="grey")
    below = top + BAR + 4
    draw.text((MARGIN, below), _number(low), fill="black", font=_font())
    right = f"{_number(high)} {s.unit}"
    draw.text((MARGIN + SIDE - draw.textlength(right, _font()), below), right, fill="black", font=_font())
    found = f"least {_number(s.least)}, most {_number(s.most)}"
    draw.text((MARGIN, below + LINE), found, fill="dimgrey", font=_font())
    return page


def plain(rgb: np.ndarray, caption: str) -> Image.Image:
    """The picture itself, in the frame of a panel."""
    return _page(rgb, caption)[0]


def _page(rgb: np.ndarray, caption: str) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A picture under its caption, its longer side `SIDE`; and where there is room below it."""
    picture = Image.fromarray(rgb)
    wide, tall = (max(1, round(n * SIDE / max(picture.size))) for n in picture.size)
    smaller = max(picture.size) > SIDE
    picture = picture.resize((wide, tall), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST)
    page = Image.new("RGB", (SIDE + 2 * MARGIN, tall + 3 * LINE + BAR + 3 * MARGIN), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN // 2), caption, fill="black", font=_font())
    page.paste(picture, (MARGIN, MARGIN // 2 + LINE))
    return page, draw, MARGIN // 2 + LINE + tall + MARGIN // 2


def beside(title: str, panels: list[Image.Image]) -> Image.Image:
    """Panels in a row under a title, which is broken into lines where it is long."""
    width = sum(part.width for part in panels)
    lines = _lines(title, width - 2 * MARGIN)
    top = MARGIN + LINE * len(lines)
    page = Image.new("RGB", (width, top + max(part.height for part in panels)), "white")
    ImageDraw.Draw(page).multiline_text((MARGIN, MARGIN), "\n".join(lines), fill="black", font=_font(), spacing=6)
    at = 0
    for part in panels:
        page.paste(part, (at, top))
        at += part.width
    return page


def _lines(text: str, width: int) -> list[str]:
    """What the font cannot show is written as `\\u....`."""
    font, lines = _font(), [""]
    for word in text.encode("latin-1", "backslashreplace").decode("latin-1").split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(15)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _number(x: float) -> str:
    return f"{x:.3g}"
