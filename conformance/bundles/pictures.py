"""Make small pictures with the same bytes on every machine.

Arithmetic is on integers, and PNGs are not compressed, because two versions of a compressor may differ. H, W height and
width, B bands: 3, or 4 with transparency.

PNG: ISO/IEC 15948; zlib and deflate's stored blocks: RFC 1950, RFC 1951 3.2.4.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

SQUARE = 7  # pixels: as large as the patches that a small tower sees
STORED = 0xFFFF  # bytes that one stored block can hold


def picture(height: int, width: int, bands: int, seed: int) -> np.ndarray:
    """Draw squares of random colours with a little noise, (H, W, B) uint8.

    Coarse and fine structure together reveal another resampling or another place of the padding."""
    down, across = -(-height // SQUARE), -(-width // SQUARE)
    colours = _bytes([seed, 1], down * across * bands).reshape(down, across, bands)
    coarse = colours.repeat(SQUARE, 0).repeat(SQUARE, 1)[:height, :width].astype(np.int64)
    noise = _bytes([seed, 2], height * width * bands).reshape(height, width, bands) // 8
    return np.clip(coarse + noise - 16, 0, 255).astype(np.uint8)


def _bytes(seed: list[int], count: int) -> np.ndarray:
    """Return random bytes of the bit generator, whose stream numpy promises to keep, unlike `Generator`'s methods."""
    words = np.random.PCG64(seed).random_raw(-(-count // 8))
    return words.astype("<u8").view(np.uint8)[:count].astype(np.int64)


def png(pixels: np.ndarray) -> bytes:
    """Encode pixels (H, W, B) uint8 as a PNG file."""
    height, width, bands = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))  # each: filter 0, then its pixels
    data = b"\x78\x01" + b"".join(_stored(rows)) + struct.pack(">I", zlib.adler32(rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _stored(data: bytes) -> Iterator[bytes]:
    """Yield deflate's stored blocks."""
    for at in range(0, len(data), STORED):
        part = data[at : at + STORED]
        last = at + STORED >= len(data)
        yield struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF) + part


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
