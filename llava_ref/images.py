"""The bytes of a picture to RGB: PNG, JPEG, WebP, GIF (first frame) and BMP, told apart by content, within limits.

Pillow decodes; which of its decoders runs is decided here from the first bytes, and sizes are checked before a pixel
is decoded. What happens to alpha, palettes, 16 bits, CMYK and EXIF is in docs/pictures.md.
"""

import os
import stat
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, GifImagePlugin, Image, UnidentifiedImageError

from .errors import ImageError

Exif = Literal["ignore", "apply"]
Alpha = Literal["convert", "drop"]

MAX_ENCODED = 20 * 2**20  # bytes of a file
MAX_PIXELS = 40_000_000  # width x height
MAX_SIDE = 65_535  # what a JPEG can have: bounds the work that padding or cropping a strip would make
MAX_IMAGES = 16  # in one request
MAX_METADATA = 1_000  # chunks of a PNG beside the pixels, segments of a JPEG's header: Pillow unpacks and joins them
MAX_BLOCKS = 100_000  # all chunks of a PNG; blocks of a GIF before its first frame
MAX_SCANS = 50  # of a progressive JPEG: each is a pass over all pixels; encoders make about ten

MAGIC = {  # first bytes -> Pillow's name
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
}

_warnings_are_global = threading.Lock()  # catch_warnings changes the whole process: one decode at a time


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture as 8-bit RGB, turned upright where the profile says so."""

    rgb: np.ndarray  # (height, width, 3) uint8
    format: str  # "PNG", "JPEG", "WEBP", "GIF", "BMP"; "array", or a PIL image's own
    orientation: int  # EXIF: 1..8, 1 where there is none
    warnings: tuple[str, ...]

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])


def decode(data: bytes, *, exif: Exif = "ignore", alpha: Alpha = "convert", where: str = "image") -> np.ndarray:
    """The bytes of a file -> (h, w, 3) uint8 RGB. ImageError, and nothing else, where they are no picture we read."""
    return load(data, exif=exif, alpha=alpha, where=where).rgb


def load(
    source: bytes | str | Path | Image.Image | np.ndarray,
    *,
    exif: Exif = "ignore",
    alpha: Alpha = "convert",
    where: str = "image",
) -> DecodedImage:
    """A file's bytes, a path, a PIL image, or an array (h, w, 3) uint8 -> RGB. ImageError names `where`.

    `exif`: an orientation other than 1 is ignored with a warning, or applied. `alpha`: Pillow's `convert("RGB")`, or
    as stb_image with three channels. The two differ for GIF only: where its first frame draws nothing, Pillow has the
    colour of the transparent index, stb_image black (and the background colour around a frame smaller than the whole).
    """
    match source:
        case bytes() | bytearray() | memoryview():
            return _decode(bytes(source), exif, alpha, where)
        case str() | Path():
            return _decode(_read(Path(source), where), exif, alpha, where)
        case Image.Image():
            return _convert(source, exif, alpha, where)
        case np.ndarray():
            return _from_array(source, where)
    raise ImageError(where, "type", f"{type(source).__name__}, expected bytes, a path, a PIL image or an array")


def measure(data: bytes, where: str = "image") -> tuple[int, int]:
    """Width and height in pixels from a file's header, nothing decoded. ImageError as for `decode`."""
    image = _open(data, where)
    _check_size(*image.size, where)
    return image.size


def _from_array(rgb: np.ndarray, where: str) -> DecodedImage:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(where, "array", f"{rgb.dtype} {rgb.shape}, expected uint8 (height, width, 3)")
    _check_size(rgb.shape[1], rgb.shape[0], where)
    return DecodedImage(np.ascontiguousarray(rgb), "array", 1, ())


def _read(path: Path, where: str) -> bytes:
    """A regular file's bytes; never waits on a FIFO, never reads more than the limit."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ImageError(where, str(path), "not a regular file")
            return file.read(MAX_ENCODED + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise ImageError(where, str(path), getattr(error, "strerror", None) or str(error)) from None


def _decode(data: bytes, exif: Exif, alpha: Alpha, where: str) -> DecodedImage:
    image = _open(data, where)
    return _convert(image, exif, alpha, where, _format(data, where))


def _open(data: bytes, where: str) -> Image.Image:
    """The header read, no pixel decoded."""
    if len(data) > MAX_ENCODED:
        raise ImageError(where, "size", f"over {MAX_ENCODED} bytes encoded")
    name = _format(data, where)
    _check_structure(name, data, where)
    with _pillow(name, where):
        return Image.open(BytesIO(data), formats=[name])


def _format(data: bytes, where: str) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in MAGIC.items():
        if data.startswith(magic):
            return name
    raise ImageError(where, "format", f"starts with {data[:12]!r}, expected PNG, JPEG, WebP, GIF or BMP")


def _check_size(width: int, height: int, where: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(where, "size", f"{width} x {height} pixels, expected at least 1 x 1")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limits = f"expected at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side"
        raise ImageError(where, "size", f"{width} x {height} pixels, {limits}")


def _check_structure(name: str, data: bytes, where: str) -> None:
    """Refuses files whose parts cost time and hold no pixels. Passes over whatever Pillow passes over."""
    if name == "PNG":
        kinds = Counter(islice(_png_chunks(data), MAX_BLOCKS + 1))
        pixels = sum(kinds[kind] for kind in (b"IDAT", b"fdAT", b"fcTL"))
        counts = {
            "chunks": (kinds.total(), MAX_BLOCKS),
            "chunks beside the pixels": (kinds.total() - pixels, MAX_METADATA),
        }
    elif name == "JPEG":  # FF DA only ever marks a scan: in coded data FF is followed by 00
        segments = sum(1 for _ in islice(_jpeg_segments(data), MAX_METADATA + 1))
        counts = {"header segments": (segments, MAX_METADATA), "scans": (data.count(b"\xff\xda"), MAX_SCANS)}
    elif name == "GIF":
        blocks = sum(1 for _ in islice(_gif_blocks(data), MAX_BLOCKS + 1))
        counts = {"blocks before the first frame": (blocks, MAX_BLOCKS)}
    else:
        counts = {}
    for what, (found, limit) in counts.items():
        if found > limit:
            raise ImageError(where, name, f"over {limit:,} {what}")


def _png_chunks(data: bytes) -> Iterator[bytes]:
    at, kind = 8, b""
    while at + 8 <= len(data) and kind != b"IEND":
        kind = data[at + 4 : at + 8]
        yield kind
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Markers up to the first scan."""
    at = data.find(b"\xff", 2)
    while 0 <= at < len(data) - 1 and data[at + 1] != 0xDA:
        marker = data[at + 1]
        yield marker
        length = 0
        if 0xC0 <= marker <= 0xFE and marker != 0xC8 and not 0xD0 <= marker <= 0xD9 and not 0xF0 <= marker <= 0xFD:
            length = max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        at = data.find(b"\xff", at + 1 + (marker != 0xFF) + length)


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Sub-blocks of extensions, and stray bytes, up to the first frame."""
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < len(data) and data[at] not in b",;":
        if data[at] != 0x21:
            at += 1
        else:
            at += 2
            while at < len(data) and data[at]:
                yield at
                at += 1 + data[at]
            at += 1
        yield at


@contextmanager
def _pillow(name: str, where: str) -> Iterator[None]:
    """Around calls of Pillow's decoders only. They promise no set of exceptions, so all become one."""
    with _warnings_are_global, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Image appears to be a malformed MPO file")  # a JPEG all the same
        warnings.filterwarnings("ignore", "Palette images with Transparency")  # the colours are what we want
        try:
            yield
        except UnidentifiedImageError:  # its text is an address in memory
            raise ImageError(where, name, "the header cannot be read") from None
        except Exception as error:
            raise ImageError(where, name, f"{type(error).__name__}: {error}") from None


def _convert(image: Image.Image, exif: Exif, alpha: Alpha, where: str, name: str | None = None) -> DecodedImage:
    name = name or image.format or "PIL image"
    _check_size(*image.size, where)
    with _pillow(name, where):
        image.load()
    orientation, notes = _orientation(image, name, where)
    with _pillow(name, where):
        rgb = _rgb(image, alpha)
    if exif == "apply":
        rgb = np.ascontiguousarray(_turn(rgb, orientation))
    elif orientation != 1:
        notes += (f"{where}: EXIF orientation {orientation} is ignored",)
    return DecodedImage(rgb, name, orientation, notes)


def _rgb(image: Image.Image, alpha: Alpha) -> np.ndarray:
    """A loaded image -> (h, w, 3) uint8."""
    if image.mode.startswith(
        "I;16"
    ):  # Pillow's own conversion would clip at 255; other 16-bit PNGs it shifts by itself
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no 8-bit colours, convert it first")
    rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if alpha == "drop" and isinstance(image, GifImagePlugin.GifImageFile) and image.mode in ("P", "L"):
        _blank_as_stb_image(rgb, image)
    return rgb


def _blank_as_stb_image(rgb: np.ndarray, image: GifImagePlugin.GifImageFile) -> None:
    """What a GIF's first frame does not draw, as stb_image 2.30 leaves it (`stbi__gif_load_next`)."""
    left, top, right, bottom = image.dispose_extent or (0, 0, *image.size)
    frame = rgb[top:bottom, left:right].copy()
    frame[np.asarray(image)[top:bottom, left:right] == image.info.get("transparency", -1)] = 0
    background = 3 * image.info.get("background", 0)
    palette = image.global_palette.getdata()[1] if image.global_palette else b""
    around = palette[background : background + 3][::-1]  # it holds palettes as BGR and copies this one colour as it is
    rgb[:] = list(around) if background and around else 0
    rgb[top:bottom, left:right] = frame


def _orientation(image: Image.Image, name: str, where: str) -> tuple[int, tuple[str, ...]]:
    """EXIF orientation 1..8, and what to tell the user. Broken EXIF data does not make a picture unreadable."""
    try:
        with _pillow(name, where):
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except ImageError as error:
        return 1, (f"{error.where}: EXIF data cannot be read, orientation taken as 1",)
    return (value if value in range(1, 9) else 1), ()


def _turn(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation: 2 mirrored, 3 upside down, 4 both, 5..8 the same with the axes swapped."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return rgb[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
