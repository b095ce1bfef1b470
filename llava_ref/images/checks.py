"""Checks that all of a picture is in its file. Decoders pass over missing data in silence, and rows stay black.

Each check takes a file as `image_parts` leaves it. docs/pictures.md has the table of what is refused and what is told.
"""

import struct
import zlib
from collections.abc import Iterator

from . import jpeg as image_jpeg
from .parts import Parts, png_chunks

STEP = 1 << 16  # bytes inflated at once


def lacking(name: str, parts: Parts, size: tuple[int, int]) -> tuple[list[str], bytes | None]:
    """Return what a file of the format `name` lacks of its `size`, and for a JPEG the file that `image_jpeg` compares.

    Raises ValueError where other readers refuse the file too.
    """
    notes, longer = list[str](), None
    if parts.frame and parts.frame != size:
        (w, h), (width, height) = parts.frame, size
        notes.append(f"the first frame has {w} x {h} of {width} x {height} pixels, the others are not in the file")
    if name == "PNG":
        count_png(parts.pixels)
    elif name == "JPEG":
        problem, longer = image_jpeg.missing(parts.pixels)
        if problem:
            return [problem], None
    elif name == "BMP" and not draws_all(parts.pixels):
        notes.append("rows end early: some pixels are not in the file")
    return notes, longer


# PNG

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each colour type


def count_png(data: bytes) -> None:
    """Count the bytes that the pixels unpack to. Raises ValueError where the header asks for more."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    bits = depth * CHANNELS.get(colour, 0)
    wanted = sum(_rows(width, height, bits, *steps) for steps in passes)
    found = _inflated(data, wanted)
    if found < wanted:
        raise ValueError(f"the pixel data end early: {found:,} bytes, expected {wanted:,}")


def _rows(width: int, height: int, bits: int, left: int, top: int, right: int, down: int) -> int:
    """Return the bytes of one pass: rows of pixels at every `right`-th place, each after a byte for its filter."""
    columns, rows = -(-(width - left) // right), -(-(height - top) // down)
    return rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0


def _inflated(data: bytes, wanted: int) -> int:
    """Return how many bytes, up to about `wanted`, the pixels unpack to. Raises ValueError where they are damaged."""
    stream, found = zlib.decompressobj(), 0
    try:
        for piece in _packed(data):
            while piece and not stream.eof and found <= wanted:
                found += len(stream.decompress(piece, STEP))
                piece = stream.unconsumed_tail
    except zlib.error:
        raise ValueError("the pixel data are damaged") from None
    return found


def _packed(data: bytes) -> Iterator[bytes]:
    """Yield the packed pixels of a PNG in pieces."""
    for kind, start, end in png_chunks(data):
        if kind == b"IDAT":
            for at in range(start, end, STEP):
                yield data[at : min(at + STEP, end)]


# BMP


def draws_all(data: bytes) -> bool:
    """Tell whether a run-length coded BMP draws all its pixels: rows may end early, or be passed over."""
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression not in (1, 2):
        return True
    return sum(_runs(data[struct.unpack_from("<I", data, 10)[0] :], width, compression == 2)) >= width * abs(height)


def _runs(code: bytes, width: int, halves: bool) -> Iterator[int]:
    """Yield how many pixels each code draws. `halves`: two pixels a byte."""
    at = column = 0
    while at + 1 < len(code) and code[at : at + 2] != b"\0\1":
        count, value = code[at], code[at + 1]
        at += 2
        if count or value > 2:
            drawn = min(count or value, max(0, width - column))
            column += drawn
            yield drawn
        if not count and value > 2:  # so many pixels follow, in whole pairs of bytes
            at += ((value + 1) // 2 if halves else value) + 1 & ~1
        elif not count:
            column = 0 if value == 0 else column + code[at] if at < len(code) else column
            at += value  # 2: a step to the right and up
