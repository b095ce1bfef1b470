"""A picture to the numbers that the tower reads, by the profile's rule, with the way back to the picture's own pixels.

S is the tower's `image_size`. The three rules (quirk `square`), for a picture of w x h:

- "pad-resize" (haotian-liu/LLaVA v1.2.2, mm_utils.py `expand2square`, then CLIPImageProcessor): on a square of the
  longer side, filled with int(mean * 255), then one bicubic resize to S.
- "crop" (transformers' CLIPImageProcessor on Pillow): the shorter side to S, the longer to int(S * long / short), then
  the S x S in the middle; what lies outside is never seen.
- "resize-pad" (llama.cpp b10605, mtmd-image.cpp:39-93): scaled to fit into S x S, new sides rounded up, the horizontal
  pass first, then centred on (122, 116, 104).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from ..errors import ImageError
from ..models.config import VisionConfig
from ..ops.threads import one_blas_thread
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap
from .resample import resize, resize_padded

LLAMA_CPP_FILL = (122, 116, 104)  # clip.cpp:1420; the same whatever the file's mean is


@dataclass(frozen=True, slots=True)
class Affine:
    """From the model's picture to the source picture, in continuous coordinates: pixel i covers i..i + 1.

    So the centre of the model's top left pixel is (0.5, 0.5), and the source is 0..width by 0..height. Points of the
    padding fall outside of that. The source is the picture as `images.load` gives it, after a turn by EXIF.
    """

    scale_x: float  # source pixels per model pixel
    scale_y: float
    shift_x: float  # source coordinates of the model's (0, 0)
    shift_y: float

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """A point of the model's picture -> the same point of the source."""
        return x * self.scale_x + self.shift_x, y * self.scale_y + self.shift_y

    def to_model(self, x: float, y: float) -> tuple[float, float]:
        """A point of the source -> the same point of the model's picture (outside 0..S where it was cropped off)."""
        return (x - self.shift_x) / self.scale_x, (y - self.shift_y) / self.scale_y


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """What the tower is given, and what that is a picture of."""

    pixels: np.ndarray  # (tiles = 1, 3, S, S) float32, normalised
    seen: np.ndarray  # (S, S, 3) uint8, the same before normalising
    affine: Affine
    source: tuple[int, int]  # width, height


@one_blas_thread()
def preprocess(rgb: np.ndarray, config: VisionConfig, quirks: Quirks, tap: Tap = no_tap) -> Preprocessed:
    """(h, w, 3) uint8 -> pixels, the picture seen, and the way back. `quirks.square` picks the rule."""
    rgb = tap("image.rgb", rgb)
    h, w = rgb.shape[:2]
    size = config.image_size
    if quirks.square == "pad-resize":
        r, g, b = (int(mean * 255) for mean in config.mean)
        seen, affine = _pad_resize(rgb, size, (r, g, b))
    elif quirks.square == "crop":
        seen, affine = _crop(rgb, size)
    else:
        seen, affine = _resize_pad(rgb, size)
    seen = tap("image.seen", seen)
    return Preprocessed(normalise(seen, config), seen, affine, (w, h))


def normalise(seen: np.ndarray, config: VisionConfig) -> np.ndarray:
    """(S, S, 3) uint8 -> (1, 3, S, S) float32: (u8 / 255 - mean) / std, each of the three operations in float32.

    As llama.cpp does it (clip-impl.h:714-742). transformers multiplies by 1 / 255 in float64 and rounds after that,
    which gives the same float32 for all 256 levels.
    """
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    x = (seen.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


def _pad_resize(rgb: np.ndarray, size: int, fill: tuple[int, int, int]) -> tuple[np.ndarray, Affine]:
    h, w = rgb.shape[:2]
    long = max(h, w)
    scale = long / size
    return resize_padded(rgb, size, fill), Affine(scale, scale, -((long - w) // 2), -((long - h) // 2))


def _crop(rgb: np.ndarray, size: int) -> tuple[np.ndarray, Affine]:
    h, w = rgb.shape[:2]
    short = min(h, w)
    width, height = int(size * w / short), int(size * h / short)
    left, top = (width - size) // 2, (height - size) // 2
    seen = resize(rgb, width, height, order="pillow", window=(left, top, left + size, top + size))
    return seen, _placed(rgb, width, height, -left, -top)


def _resize_pad(rgb: np.ndarray, size: int) -> tuple[np.ndarray, Affine]:
    h, w = rgb.shape[:2]
    scale = min(np.float32(size) / np.float32(w), np.float32(size) / np.float32(h))  # float32 decides some sizes
    width, height = (min(int(np.ceil(np.float32(n) * scale)), size) for n in (w, h))
    left, top = (size - width) // 2, (size - height) // 2
    seen = np.empty((size, size, 3), np.uint8)
    seen[:] = LLAMA_CPP_FILL
    seen[top : top + height, left : left + width] = resize(rgb, width, height, order="horizontal")
    return seen, _placed(rgb, width, height, left, top)


def _placed(rgb: np.ndarray, width: int, height: int, left: int, top: int) -> Affine:
    """For the whole picture, resized to width x height, with its corner at (left, top) of the model's picture."""
    h, w = rgb.shape[:2]
    x, y = w / width, h / height
    return Affine(x, y, -left * x, -top * y)


def save_png(preprocessed: Preprocessed, path: str | Path) -> None:
    """Writes the picture that the model saw; a text chunk `llava_ref` holds the way back to the source, as JSON.

    `{"affine": {"scale_x": ..., "scale_y": ..., "shift_x": ..., "shift_y": ...}, "source": [width, height]}`.
    ImageError where the file cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text("llava_ref", json.dumps({"affine": asdict(preprocessed.affine), "source": preprocessed.source}))
    try:
        Image.fromarray(preprocessed.seen).save(path, "PNG", pnginfo=text)
    except OSError as error:
        raise ImageError(path, "file", f"cannot be written: {error.strerror or error}") from None
