"""Fit a picture into what a tower takes, normalise it, and keep the way back to its own pixels.

S is the side of the square that most towers take, H and W height and width of what others do. The rules, for a
picture of w x h:

- `pad_resize` (haotian-liu/LLaVA v1.2.2, mm_utils.py `expand2square`, then CLIPImageProcessor): on a square of the
  longer side, filled with one colour, then one bicubic resize to S.
- `crop` (transformers' CLIPImageProcessor on Pillow): the shorter side to S, the longer to int(S * long / short), then
  the S x S in the middle; what lies outside is never seen.
- `resize_pad` (llama.cpp b10605, mtmd-image.cpp:39-93): scaled to fit into S x S, new sides rounded up, the horizontal
  pass first, then centred on one colour.
- `stretch` (transformers' Gemma3ImageProcessor): both sides to S, whatever the aspect.
- `cut` (LlavaNextImageProcessor; llama.cpp, mtmd-image.cpp:488-557): a picture fitted to a larger size is cut into
  S x S tiles, row by row.
- `stretch_again` (Idefics3ImageProcessor): one more resize of what a resize has made.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from ..errors import ImageError
from ..html import data_uri
from ..ops.threads import one_blas_thread
from .resample import BICUBIC, Filter, Order, resize, resize_padded

Colour = tuple[int, int, int]
SHOWN = 336  # pixels a side of a tile in a notebook, at most


@dataclass(frozen=True, slots=True)
class PictureMap:
    """Map the model's picture to the source picture, in continuous coordinates: pixel i covers i..i + 1.

    So the centre of the model's top left pixel is (0.5, 0.5), and the source is 0..width by 0..height. Points of the
    padding fall outside of that. The source is the picture as `images.load` gives it, after a turn by EXIF.
    """

    scale_x: float  # source pixels per model pixel
    scale_y: float
    shift_x: float  # source coordinates of the model's (0, 0)
    shift_y: float

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """Return the same point of the source."""
        return x * self.scale_x + self.shift_x, y * self.scale_y + self.shift_y

    def to_model(self, x: float, y: float) -> tuple[float, float]:
        """Return the same point of the model's picture (outside 0..S where it was cropped off)."""
        return (x - self.shift_x) / self.scale_x, (y - self.shift_y) / self.scale_y


Fitted = tuple[np.ndarray, PictureMap]
"""What one run of a tower sees, (H, W, 3) uint8, and the way back."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one run of a tower sees of a picture: all of it, or a part."""

    seen: np.ndarray  # (H, W, 3) uint8
    affine: PictureMap
    rows: np.ndarray
    """(gy, gx) int64: for each square of `seen` the number of the picture's row that stands for it, -1: none does."""


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """A picture as a tower takes it."""

    pixels: np.ndarray  # (tiles, 3, H, W) float32, normalised
    tiles: tuple[Tile, ...]
    source: tuple[int, int]  # width, height

    @property
    def seen(self) -> np.ndarray:
        """Return all that was seen, the tiles side by side.  (S, tiles * S, 3) uint8"""
        return np.concatenate([tile.seen for tile in self.tiles], 1)

    @property
    def whole(self) -> Tile:
        """Return the tile that shows all of the picture: it has the most of the source."""
        return max(self.tiles, key=lambda tile: tile.affine.scale_x * tile.affine.scale_y)

    def __repr__(self) -> str:
        shapes = sorted({tile.seen.shape[1::-1] for tile in self.tiles})
        sizes = ", ".join(f"{width} x {height}" for width, height in shapes)
        width, height = self.source
        return f"<Preprocessed: {len(self.tiles)} of {sizes}, of a picture of {width} x {height}>"

    def _repr_html_(self) -> str:
        """Return the tiles as the tower sees them, for notebooks."""
        shown = [Image.fromarray(tile.seen) for tile in self.tiles]
        for picture in shown:
            picture.thumbnail((SHOWN, SHOWN))
        style = "image-rendering: pixelated; min-width: 12em; margin: 2px; display: inline-block"
        tiles = (f'<img src="{data_uri(np.asarray(p))}" alt="tile {i}" style="{style}">' for i, p in enumerate(shown))
        return f"<div>{escape(repr(self))}</div>{''.join(tiles)}"

    @property
    def affine(self) -> PictureMap:
        """Return the way back from the tile that shows all of the picture."""
        return self.whole.affine


def normalise(seen: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return (u8 / 255 - mean) / std, each of the three operations in float32.  (H, W, 3) uint8 -> (1, 3, H, W)

    As llama.cpp does it (clip-impl.h:714-742). transformers multiplies by 1 / 255 in float64 and rounds after that,
    which gives the same float32 for all 256 levels.
    """
    x = (seen.astype(np.float32) / np.float32(255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


@one_blas_thread()
def pad_resize(rgb: np.ndarray, size: int, fill: Colour) -> Fitted:
    """Pad to a square with `fill`, then resize.  (h, w, 3) uint8 -> (S, S, 3) uint8"""
    h, w = rgb.shape[:2]
    long = max(h, w)
    scale = long / size
    return resize_padded(rgb, size, fill, BICUBIC), PictureMap(scale, scale, -((long - w) // 2), -((long - h) // 2))


@one_blas_thread()
def crop(rgb: np.ndarray, size: int) -> Fitted:
    """Resize the shorter side, then cut out the middle.  (h, w, 3) uint8 -> (S, S, 3) uint8"""
    h, w = rgb.shape[:2]
    short = min(h, w)
    width, height = int(size * w / short), int(size * h / short)
    left, top = (width - size) // 2, (height - size) // 2
    window = (left, top, left + size, top + size)
    seen = resize(rgb, width, height, kernel=BICUBIC, order="pillow", window=window)
    return seen, _placed(rgb, width, height, -left, -top)


@one_blas_thread()
def resize_pad(
    rgb: np.ndarray, size: int | tuple[int, int], fill: Colour, kernel: Filter, order: Order = "horizontal"
) -> Fitted:
    """Resize to fit, then centre on `fill`; `size`: S, or width W and height H.  (h, w, 3) uint8 -> (H, W, 3) uint8

    The scale is computed in float32 as llama.cpp does, with order "pillow" in float64 as transformers does: it decides
    some sizes."""
    h, w = rgb.shape[:2]
    W, H = (size, size) if isinstance(size, int) else size
    number = np.float32 if order == "horizontal" else np.float64
    scale = min(number(W) / number(w), number(H) / number(h))
    width, height = (min(int(np.ceil(number(n) * scale)), most) for n, most in ((w, W), (h, H)))
    left, top = (W - width) // 2, (H - height) // 2
    seen = np.empty((H, W, 3), np.uint8)
    seen[:] = fill
    seen[top : top + height, left : left + width] = resize(rgb, width, height, kernel=kernel, order=order)
    return seen, _placed(rgb, width, height, left, top)


def cut(fitted: Fitted, side: int) -> list[Fitted]:
    """Cut a fitted picture into tiles, row by row.  (H, W, 3) uint8 -> (S, S, 3) uint8 each"""
    whole, a = fitted
    return [
        (
            whole[y : y + side, x : x + side],
            PictureMap(a.scale_x, a.scale_y, a.shift_x + x * a.scale_x, a.shift_y + y * a.scale_y),
        )
        for y in range(0, whole.shape[0], side)
        for x in range(0, whole.shape[1], side)
    ]


@one_blas_thread()
def stretch(rgb: np.ndarray, size: int | tuple[int, int], kernel: Filter, order: Order = "pillow") -> Fitted:
    """Resize both sides, whatever the aspect; `size`: S, or W and H.  (h, w, 3) uint8 -> (H, W, 3) uint8"""
    width, height = (size, size) if isinstance(size, int) else size
    return resize(rgb, width, height, kernel=kernel, order=order), _placed(rgb, width, height, 0, 0)


@one_blas_thread()
def stretch_again(fitted: Fitted, size: int | tuple[int, int], kernel: Filter, order: Order) -> Fitted:
    """Resize a whole stretched picture once more.  (h, w, 3) uint8 -> (H, W, 3) uint8"""
    before, a = fitted
    seen, b = stretch(before, size, kernel, order)
    return seen, PictureMap(a.scale_x * b.scale_x, a.scale_y * b.scale_y, 0.0, 0.0)


def _placed(rgb: np.ndarray, width: int, height: int, left: int, top: int) -> PictureMap:
    """Map the whole picture, resized to width x height, with its corner at (left, top) of the model's picture."""
    h, w = rgb.shape[:2]
    x, y = w / width, h / height
    return PictureMap(x, y, -left * x, -top * y)


def save_png(preprocessed: Preprocessed, path: str | Path) -> None:
    """Write the picture that the model saw; a text chunk `llava_ref` holds the way back to the source, as JSON.

    `{"affine": {"scale_x": ..., "scale_y": ..., "shift_x": ..., "shift_y": ...}, "source": [width, height]}`.
    Raises ImageError where the file cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text("llava_ref", json.dumps({"affine": asdict(preprocessed.affine), "source": preprocessed.source}))
    try:
        Image.fromarray(preprocessed.seen).save(path, "PNG", pnginfo=text)
    except OSError as error:
        raise ImageError(path, "file", f"cannot be written: {error.strerror or error}") from None
