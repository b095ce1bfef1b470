"""Files of pictures for the tests: written by Pillow, or put together by hand where Pillow will not lie."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from llava_ref import images
from llava_ref.errors import ImageError

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


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


def refused(source, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        images.load(source, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return caught.value
