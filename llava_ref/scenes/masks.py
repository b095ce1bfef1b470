"""Compute how much of each pixel a thing covers, by signed distances from +, -, *, / and sqrt: the same everywhere."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .glyphs import HEIGHT, strokes

Floats = NDArray[np.float64]
Point = tuple[float, float]

_TRIANGLE: list[Point] = [(0.0, -0.98), (0.98, 0.78), (-0.98, 0.78)]
_CROSS: list[Point] = [
    (-0.32, -0.95), (0.32, -0.95), (0.32, -0.32), (0.95, -0.32), (0.95, 0.32), (0.32, 0.32),
    (0.32, 0.95), (-0.32, 0.95), (-0.32, 0.32), (-0.95, 0.32), (-0.95, -0.32), (-0.32, -0.32),
]  # fmt: skip
_STAR: list[Point] = [
    (0.0, -1.08), (0.2622, -0.3009), (1.0271, -0.2737), (0.4243, 0.1979), (0.6348, 0.9337),
    (0.0, 0.5062), (-0.6348, 0.9337), (-0.4243, 0.1979), (-1.0271, -0.2737), (-0.2622, -0.3009),
]  # fmt: skip
_HEART: list[Point] = [(0.0, 0.98), (-0.872, -0.025), (-0.45, -0.5), (0.0, -0.4), (0.45, -0.5), (0.872, -0.025)]
_HEART_LOBES: list[Point] = [(-0.45, -0.36), (0.45, -0.36)]
_HALF_TURNS = (-0.1, -0.05, 0.0, 0.05, 0.1)  # tan(angle / 2): rational rotations up to 11 degrees
TURNS = len(_HALF_TURNS)


def _segment_distance(x: Floats, y: Floats, a: Point, b: Point) -> Floats:
    """Return the distance of each point to the segment a-b."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length2 = dx * dx + dy * dy
    t = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / length2, 0.0, 1.0)
    ex, ey = x - a[0] - t * dx, y - a[1] - t * dy
    return np.sqrt(ex * ex + ey * ey)


def _polygon(x: Floats, y: Floats, points: list[Point]) -> Floats:
    """Return the signed distance of each point to a polygon, positive inside."""
    edges = list(zip(points, points[1:] + points[:1], strict=True))
    distance = np.minimum.reduce([_segment_distance(x, y, a, b) for a, b in edges])
    inside = np.zeros(x.shape, bool)
    for a, b in edges:
        if a[1] != b[1]:
            crosses = (a[1] > y) != (b[1] > y)
            inside ^= crosses & (x < a[0] + (y - a[1]) * (b[0] - a[0]) / (b[1] - a[1]))
    return np.where(inside, distance, -distance)


def _disc(x: Floats, y: Floats, centre: Point, radius: float) -> Floats:
    """Return the signed distance of each point to a disc, positive inside."""
    dx, dy = x - centre[0], y - centre[1]
    return radius - np.sqrt(dx * dx + dy * dy)


def _shape(name: str, x: Floats, y: Floats) -> Floats:
    """Return the signed distance of each point to a shape of radius about 1, positive inside."""
    match name:
        case "circle":
            return _disc(x, y, (0.0, 0.0), 0.93)
        case "square":
            return 0.82 - np.maximum(np.abs(x), np.abs(y))
        case "triangle":
            return _polygon(x, y, _TRIANGLE)
        case "star":
            return _polygon(x, y, _STAR)
        case "cross":
            return _polygon(x, y, _CROSS)
        case "heart":
            lobes = [_disc(x, y, centre, 0.52) for centre in _HEART_LOBES]
            return np.maximum.reduce([_polygon(x, y, _HEART), *lobes])
    raise ValueError(f"no shape named {name!r}")


def _grid(half_width: int, half_height: int, turn: int) -> tuple[Floats, Floats]:
    """Return x and y of the pixel centres relative to the middle of the mask, turned by one of the TURNS angles."""
    t = _HALF_TURNS[turn]
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    y, x = np.mgrid[-half_height:half_height, -half_width:half_width] + 0.5
    return cos * x + sin * y, cos * y - sin * x


def _coverage(distance: Floats) -> NDArray[np.int32]:
    """Convert signed distances in pixels to coverage 0..255."""
    return np.floor(np.clip(distance + 0.5, 0.0, 1.0) * 255 + 0.5).astype(np.int32)


@lru_cache(maxsize=4096)
def shape_mask(name: str, radius: int, turn: int) -> NDArray[np.int32]:
    """Return the coverage 0..255 of a shape, (2 h, 2 h) with h = 1.15 radius + 2 and the shape in the middle."""
    half = radius + radius * 3 // 20 + 2
    x, y = _grid(half, half, turn)
    return _coverage(_shape(name, x / radius, y / radius) * radius)


def text_half_width(text: str, half_height: int) -> int:
    """Return the pixels from the middle of a text to the centre line of its outermost stroke."""
    return int(max(abs(x) for line in strokes(text) for x, _ in line) * 2 * half_height / HEIGHT)


@lru_cache(maxsize=4096)
def text_mask(text: str, half_height: int, turn: int) -> NDArray[np.int32]:
    """Return the coverage 0..255, (2 h, 2 w), of a digit or a word with letters 2 half_height pixels high."""
    unit = 2 * half_height / HEIGHT
    lines = strokes(text)
    half_width = text_half_width(text, half_height) + 8
    x, y = _grid(half_width, half_height + 6 + half_width // 8, turn)
    segments: Iterable[tuple[Point, Point]] = ((a, b) for line in lines for a, b in zip(line, line[1:], strict=False))
    distance = np.minimum.reduce([_segment_distance(x / unit, y / unit, a, b) for a, b in segments])
    return _coverage((0.55 - distance) * unit)
