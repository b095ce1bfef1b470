"""Describe a picture as things on a grid of cells; sample such scenes and draw them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .masks import TURNS, shape_mask, text_half_width, text_mask

T = TypeVar("T")

CELL = 80  # pixels
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
DIGITS = tuple("0123456789")
WORDS = ("CAT", "DOG", "SUN", "CUP", "HAT", "BOX", "PIG", "BUS", "KEY", "MAP", "PEN", "FOX")
SIZES = ("small", "large")
COLOURS = {
    "red": (214, 40, 46),
    "orange": (245, 140, 30),
    "yellow": (244, 211, 20),
    "green": (38, 150, 66),
    "blue": (40, 92, 206),
    "purple": (138, 62, 170),
    "black": (34, 34, 38),
}
BACKGROUNDS = ((252, 251, 247), (232, 240, 248), (238, 246, 234), (250, 236, 236), (240, 234, 247), (226, 228, 230))
GRIDS = ((3, 3), (2, 3), (3, 2))  # rows, columns
RADII = {"small": (18, 21), "large": (27, 33)}  # pixels, both ends included
DIGIT_MAX = 29  # pixels: the corners of a turned digit stay in its cell
LETTERS = (20, 24)  # pixels: half the height of a word's letters


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape, a digit or a word. A word takes a whole row, and its place is the middle cell."""

    kind: Literal["shape", "digit", "word"]
    name: str  # "circle", "7", "CAT"
    colour: str
    size: str  # "small" or "large"; a word has none: ""
    row: int
    column: int
    x: int  # pixels, the middle of the thing
    y: int
    radius: int  # of a shape; half the height of a digit or a word
    turn: int  # 0..TURNS-1
    rgb: tuple[int, int, int]  # `colour`, a shade off

    def half_width(self) -> int:
        """Return the pixels from the middle to the left or right end."""
        return self.radius if self.kind == "shape" else text_half_width(self.name, self.radius)

    def mask(self) -> NDArray[np.int32]:
        """Return the coverage 0..255 of pixels, (h, w), centred on (x, y)."""
        draw = shape_mask if self.kind == "shape" else text_mask
        return draw(self.name, self.radius, self.turn)


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in reading order on a plain background."""

    rows: int
    columns: int
    background: tuple[int, int, int]
    things: tuple[Thing, ...]

    def draw(self) -> Image.Image:
        """Draw the scene in RGB with 80 pixels to a cell: 240x240, 240x160 or 160x240."""
        canvas = np.empty((self.rows * CELL, self.columns * CELL, 3), np.int32)
        canvas[:] = self.background
        for thing in self.things:
            _blend(canvas, thing)
        return Image.fromarray(canvas.astype(np.uint8))

    def cell_name(self, row: int, column: int) -> str:
        """Return the name of a cell: "top left", "top", ... "centre"."""
        vertical = _third(row, self.rows, ("top", "", "bottom"))
        horizontal = _third(column, self.columns, ("left", "", "right"))
        return " ".join(word for word in (vertical, horizontal) if word) or "centre"

    def place(self, thing: Thing) -> str:
        """Return the name of a thing's cell."""
        return self.cell_name(thing.row, thing.column)


def _third(index: int, count: int, names: tuple[str, str, str]) -> str:
    """Return the name of the first, a middle or the last index."""
    return names[0] if index == 0 else names[2] if index == count - 1 else names[1]


def _blend(canvas: NDArray[np.int32], thing: Thing) -> None:
    """Draw a thing onto the canvas, (h, w, 3)."""
    mask = thing.mask()
    top, left = thing.y - mask.shape[0] // 2, thing.x - mask.shape[1] // 2
    height, width = canvas.shape[:2]
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + mask.shape[0], height), min(left + mask.shape[1], width)
    cover = mask[y0 - top : y1 - top, x0 - left : x1 - left, None]
    under = canvas[y0:y1, x0:x1]
    canvas[y0:y1, x0:x1] = (under * (255 - cover) + np.array(thing.rgb, np.int32) * cover + 127) // 255


class Draw:
    """The random choices of a scene."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, p: float) -> bool:
        """Return True with probability p."""
        return bool(self.rng.random() < p)

    def pick(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[self.between(0, len(options) - 1)]

    def take(self, options: list[T]) -> T:
        """Draw one of the options and remove it."""
        return options.pop(self.between(0, len(options) - 1))


def sample_scene(rng: np.random.Generator, max_shapes: int = 3) -> Scene:
    """Sample a scene with 1 to `max_shapes` shapes, sometimes a digit and sometimes a word, of at most five things."""
    draw = Draw(rng)
    rows, columns = draw.pick(GRIDS[1:]) if draw.chance(0.2) else GRIDS[0]
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    things: list[Thing] = []
    if columns == 3 and draw.chance(0.4):
        row = draw.between(0, rows - 1)
        cells = [cell for cell in cells if cell[0] != row]
        things.append(_word(draw, row))
    if draw.chance(0.45):
        things.append(_thing(draw, "digit", draw.pick(DIGITS), draw.pick(list(COLOURS)), draw.take(cells)))
    names: list[str] = []
    colours: list[str] = []
    for _ in range(min(draw.between(1, max_shapes), len(cells))):
        names.append(draw.pick(names) if names and draw.chance(0.25) else draw.pick(SHAPES))
        colours.append(draw.pick(colours) if colours and draw.chance(0.2) else draw.pick(list(COLOURS)))
        things.append(_thing(draw, "shape", names[-1], colours[-1], draw.take(cells)))
    base = draw.pick(BACKGROUNDS)
    return Scene(rows, columns, _shade(draw, base, 3), tuple(sorted(things, key=lambda t: (t.row, t.column))))


def _shade(draw: Draw, rgb: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    """Change each channel of a colour by up to `amount`."""
    r, g, b = (min(max(value + draw.between(-amount, amount), 0), 255) for value in rgb)
    return r, g, b


def _thing(draw: Draw, kind: Literal["shape", "digit"], name: str, colour: str, cell: tuple[int, int]) -> Thing:
    """Sample size, position, turn and shade of a shape or digit."""
    size = draw.pick(SIZES)
    radius = min(draw.between(*RADII[size]), DIGIT_MAX if kind == "digit" else CELL)
    reach = radius + radius * (6 if kind == "digit" else 3) // 20 + 2  # of a turned corner
    play = max(CELL // 2 - reach, 0)  # from the middle of the cell
    x = cell[1] * CELL + CELL // 2 + draw.between(-play, play)
    y = cell[0] * CELL + CELL // 2 + draw.between(-play, play)
    rgb = _shade(draw, COLOURS[colour], 10)
    return Thing(kind, name, colour, size, cell[0], cell[1], x, y, radius, draw.between(0, TURNS - 1), rgb)


def _word(draw: Draw, row: int) -> Thing:
    """Sample a word for a row."""
    colour, half = draw.pick(list(COLOURS)), draw.between(*LETTERS)
    x, y = 3 * CELL // 2 + draw.between(-28, 28), row * CELL + CELL // 2 + draw.between(-4, 4)
    rgb = _shade(draw, COLOURS[colour], 10)
    return Thing("word", draw.pick(WORDS), colour, "", row, 1, x, y, half, draw.between(1, TURNS - 2), rgb)
