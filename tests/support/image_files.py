"""Files of pictures for the tests: written by Pillow, or put together by hand where Pillow will not lie."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_ref import images
from llava_ref.errors import ImageError

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


def widened(path: Path) -> Image.Image:
    """Return the picture with its own ground at both sides, half as wide again: profiles then pad it differently."""
    source = Image.open(path).convert("RGB")
    page = Image.new("RGB", (source.width * 3 // 2, source.height), source.getpixel((1, 1)))
    page.paste(source, (source.width // 4, 0))
    return page


def noise(h, w, bands=3, seed=0):
    return np.random.default_rng([seed, h, w]).integers(0, 256, (h, w, bands), dtype=np.uint8)


def encode(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(w, h, depth, colour, rows=b"", extra=b""):
    """A PNG put together by hand: kinds that Pillow does not write, and headers that lie."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def laced(w, h, bits, seed=0):
    """The rows of an interlaced PNG, pass after pass."""
    rng = np.random.default_rng(seed)
    for left, top, right, down in [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]:
        columns = len(range(left, w, right))
        for _ in range(top, h, down) if columns else []:
            yield b"\0" + rng.bytes((columns * bits + 7) // 8)


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def gif(w, h, indices, colours=16, own=0, frame=None, before=b"", after=b""):
    """A GIF of 4-bit indices, not compressed; `frame`: left, top, width, height; `own`: colours of the frame's own."""

    def palette(count):
        return bytes(range(3 * count)), (0x80 | (count.bit_length() - 2)) if count else 0

    table, flags = palette(colours)
    local, local_flags = palette(own)
    codes = [code for at in range(0, len(indices), 14) for code in (16, *indices[at : at + 14])] + [17]
    bits = "".join(f"{code:05b}"[::-1] for code in codes)
    packed = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    blocks = b"".join(bytes([len(packed[at : at + 255])]) + packed[at : at + 255] for at in range(0, len(packed), 255))
    screen = b"GIF89a" + struct.pack("<HHBBB", w, h, flags, 0, 0) + table + before
    descriptor = b"," + struct.pack("<HHHHB", *(frame or (0, 0, w, h)), local_flags) + local
    return screen + descriptor + b"\4" + blocks + b"\0" + after + b";"


def bmp(w, h, bits, data, palette=b"", compression=0, used=0, header=40, offset=None):
    """A BMP with all fields free; a header of 12 bytes is that of OS/2."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, w, h, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, w, h, 1, bits, compression, 0, 0, 0, used, 0) + bytes(header - 40)
    start = 14 + header + len(palette) if offset is None else offset
    return b"BM" + struct.pack("<III", 0, 0, start) + info + palette + data


def refused(source, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        images.load(source, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return caught.value
