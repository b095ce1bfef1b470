"""Decode the bytes of a picture to RGB: PNG, JPEG, WebP, GIF (first frame) and BMP, told apart by content, with limits.

Pillow decodes; which of its decoders runs is decided from the first bytes, and sizes are checked before a pixel is
decoded. What happens to alpha, palettes, 16 bits, CMYK, EXIF and to files that lack pixels is in docs/pictures.md.
"""

import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ..errors import ImageError
from ..files import read_regular
from ..memory import give_back
from ..profiles import Alpha, Exif
from .checks import lacking
from .colours import to_rgb
from .parts import Parts, recognise, take_apart

ImageSource = bytes | str | Path | Image.Image | np.ndarray
MAX_ENCODED = 20 * 2**20  # bytes of a file
MAX_PIXELS = 40_000_000  # width x height
MAX_SIDE = 65_535  # a JPEG's largest: bounds the work of padding or cropping a strip
MAX_IMAGES = 16  # in one request
LARGE = 2_000_000  # pixels from which on memory is handed back to the system after decoding
LIMITS = f"expected at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side"

_warnings_are_global = threading.Lock()  # catch_warnings changes the whole process: one decode at a time


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Hold a picture as 8-bit RGB, turned upright if the profile says so."""

    rgb: np.ndarray  # (height, width, 3) uint8
    format: str  # "PNG", "JPEG", "WEBP", "GIF", "BMP"; "array", or a PIL image's own
    orientation: int  # EXIF: 1..8, 1 where there is none
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<DecodedImage {self.width} x {self.height}, {self.format}>"

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])


def decode(data: bytes, *, exif: Exif = "ignore", alpha: Alpha = "convert", where: str = "image") -> np.ndarray:
    """Decode a file's bytes to RGB (h, w, 3) uint8. Raises ImageError, and nothing else, if that is not possible."""
    return load(data, exif=exif, alpha=alpha, where=where).rgb


def load(
    source: ImageSource,
    *,
    exif: Exif = "ignore",
    alpha: Alpha = "convert",
    where: str = "image",
) -> DecodedImage:
    """Convert a file's bytes, a path, a PIL image, or an array (h, w, 3) uint8 to RGB.

    Raises ImageError that names the file, or `where` if there is none.

    `exif`: an orientation other than 1 is ignored with a warning, or applied. `alpha`: the colours stored under
    transparency, as Pillow's `convert("RGB")` takes them; the picture laid over white; or as stb_image decodes to three
    channels. The first and the last differ for GIF only: where its first frame draws nothing, Pillow has the colour of
    the transparent index, stb_image black (and the background colour around a frame smaller than the whole).
    """
    match source:
        case bytes() | bytearray() | memoryview():
            image = _decode(bytes(source), exif, alpha, where)
        case str() | Path():
            image = _decode(read_file(Path(source)), exif, alpha, str(source))
        case Image.Image():
            image = _convert(source, exif, alpha, where)
        case np.ndarray():
            image = _from_array(source, where)
        case _:
            raise _no_picture(source, where)
    if image.width * image.height > LARGE:
        give_back()
    return image


def measure(source: ImageSource, where: str = "image", *, exif: Exif = "ignore") -> tuple[int, int]:
    """Return width and height in pixels, as `load` would give them, of a file from its header: nothing is decoded.

    Raises ImageError as `load`."""
    match source:
        case bytes() | bytearray() | memoryview():
            name, parts = _parts(bytes(source), where)
            size = _open(name, parts, where).size
            return _turned(size, _orientation(parts, where)[0], exif)
        case np.ndarray():
            image = _from_array(source, where)
            return image.width, image.height
        case Image.Image():
            return _turned(source.size, _oriented(source.getexif, "PIL image", where)[0], exif)
        case str() | Path():
            return measure(read_file(Path(source)), str(source), exif=exif)
        case _:
            raise _no_picture(source, where)


def _turned(size: tuple[int, int], orientation: int, exif: Exif) -> tuple[int, int]:
    """Swap width and height where an orientation is applied that swaps the axes."""
    return size[::-1] if exif == "apply" and orientation >= 5 else size


def _no_picture(source: object, where: str) -> ImageError:
    return ImageError(where, "type", f"{type(source).__name__}, expected bytes, a path, a PIL image or an array")


def _from_array(rgb: np.ndarray, where: str) -> DecodedImage:
    """Take an array (h, w, 3) uint8 as it is."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(where, "array", f"{rgb.dtype} {rgb.shape}, expected uint8 (height, width, 3)")
    _check_size(rgb.shape[1], rgb.shape[0], where)
    return DecodedImage(np.ascontiguousarray(rgb), "array", 1, ())


def read_file(path: Path) -> bytes:
    """Read a picture's file, and no more than one byte over the limit. Raises ImageError."""
    return read_regular(path, MAX_ENCODED, ImageError)


def _decode(data: bytes, exif: Exif, alpha: Alpha, where: str) -> DecodedImage:
    """Decode a file, and say what is missing or damaged in it."""
    name, parts = _parts(data, where)
    image = _open(name, parts, where)
    with _checking(name, where):
        notes, longer = lacking(name, parts, image.size)
    counts = _counts(longer, where) if longer else None
    rgb = _pixels(image, alpha, name, where)
    if longer and image.histogram() != counts:
        notes.append("the coded data end early: some pixels are not in the file")
    if parts.colours and (highest := int(np.max(image.getextrema()))) >= parts.colours:
        notes.append(f"pixels of colour {highest}, which is not in the palette of {parts.colours}")
    if parts.no_transparency and alpha == "white":
        notes.append("the transparency (tRNS) is damaged, and ignored")
    orientation, damaged = _orientation(parts, where)
    told = (*(f"{where}: {name}: {note}" for note in notes), *damaged)
    return _upright(DecodedImage(rgb, name, orientation, told), exif, where)


def _parts(data: bytes, where: str) -> tuple[str, Parts]:
    """Return the format's name, and the file without what its pixels do not need."""
    if len(data) > MAX_ENCODED:
        raise ImageError(where, "size", f"over {MAX_ENCODED} bytes encoded", code="image_too_large")
    name = recognise(data, where)
    with _checking(name, where):
        return name, take_apart(name, data)


def _open(name: str, parts: Parts, where: str) -> Image.Image:
    """Read the header and check its size; no pixel is decoded."""
    with _pillow(name, where, "the header is damaged, or of a kind that is not read"):
        image = Image.open(BytesIO(parts.pixels), formats=[name])
    _check_size(*image.size, where)
    return image


def _check_size(width: int, height: int, where: str) -> None:
    """Raise ImageError if a picture has no pixels or too many."""
    if width < 1 or height < 1:
        raise ImageError(where, "size", f"{width} x {height} pixels, expected at least 1 x 1")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(where, "size", f"{width} x {height} pixels, {LIMITS}", code="image_too_large")


@contextmanager
def _checking(name: str, where: str) -> Iterator[None]:
    """Turn what this project's own checks of a file raise into ImageError."""
    try:
        yield
    except (LookupError, ArithmeticError, struct.error):
        raise ImageError(where, name, "the header is damaged, or cut short") from None
    except ValueError as error:
        raise ImageError(where, name, str(error)) from None


@contextmanager
def _pillow(name: str, where: str, problem: str) -> Iterator[list[warnings.WarningMessage]]:
    """Turn every exception of Pillow into ImageError (it promises no set of them), and yield what it warns of."""
    with _warnings_are_global, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Palette images with Transparency")  # the colours are what we want
        try:
            yield said
        except Image.DecompressionBombError:  # raised before Pillow tells the size
            problem = f"far more than {MAX_PIXELS:,} pixels, {LIMITS}"
            raise ImageError(where, "size", problem, code="image_too_large") from None
        except MemoryError:
            raise ImageError(where, name, "not enough memory to decode it") from None
        except Exception:
            raise ImageError(where, name, problem) from None


def _convert(image: Image.Image, exif: Exif, alpha: Alpha, where: str) -> DecodedImage:
    """Convert a PIL image."""
    name = image.format or "PIL image"
    _check_size(*image.size, where)
    rgb = _pixels(image, alpha, name, where)
    orientation, notes = _oriented(image.getexif, name, where)
    return _upright(DecodedImage(rgb, name, orientation, notes), exif, where)


def _pixels(image: Image.Image, alpha: Alpha, name: str, where: str) -> np.ndarray:
    """Decode an opened image to RGB (h, w, 3) uint8."""
    with _pillow(name, where, "the pixel data are damaged, or cut short"):
        image.load()
    if image.mode in ("I", "F"):
        raise ImageError(where, name, f"mode {image.mode} has no 8-bit colours, convert it first")
    with _pillow(name, where, f"mode {image.mode} cannot be converted to RGB"):
        return to_rgb(image, alpha)


def _upright(image: DecodedImage, exif: Exif, where: str) -> DecodedImage:
    """Turn the image by its orientation, or add a warning that it is not turned."""
    if exif == "apply":
        return replace(image, rgb=np.ascontiguousarray(_turn(image.rgb, image.orientation)))
    if image.orientation == 1:
        return image
    return replace(image, warnings=(*image.warnings, f"{where}: EXIF orientation {image.orientation} is ignored"))


def _counts(data: bytes, where: str) -> list[int] | None:
    """Count a JPEG's samples by value, which takes no memory beside the pixels. Return None if it is no picture."""
    try:
        image = _open("JPEG", Parts(data), where)
        with _pillow("JPEG", where, "no picture"):
            image.load()
    except ImageError:
        return None
    return image.histogram()


def _orientation(parts: Parts, where: str) -> tuple[int, tuple[str, ...]]:
    """Read the orientation from a file's EXIF data, or else from its XMP data, as Pillow does."""

    def read() -> Image.Exif:
        exif = Image.Exif()
        exif.load(parts.exif)
        found = re.search(rb'tiff:Orientation(="|>)([0-9])', parts.xmp)
        if found and ExifTags.Base.Orientation not in exif:
            exif[ExifTags.Base.Orientation] = int(found[2])
        return exif

    return _oriented(read, "EXIF", where)


def _oriented(read: Callable[[], Image.Exif], name: str, where: str) -> tuple[int, tuple[str, ...]]:
    """Return an orientation 1..8, and what to tell the user. Broken EXIF data do not make a picture unreadable."""
    try:
        with _pillow(name, where, "damaged") as said:
            value = read().get(ExifTags.Base.Orientation, 1)
    except ImageError as error:
        return 1, (f"{error.where}: EXIF data cannot be read, orientation taken as 1",)
    notes = (f"{where}: EXIF data are damaged, orientation taken as {value}",) if said else ()
    return (value, notes) if value in range(1, 9) else (1, ())


def _turn(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 2 mirrored, 3 upside down, 4 both, 5..8 the same with the axes swapped."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return rgb[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
