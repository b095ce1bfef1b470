"""Test PNGs without all their pixels, or without their palette: they are refused, as other readers do.

Each kind has a control: the same file with all its pixels is read without a warning.
"""

import struct
import zlib

import numpy as np
import pytest

from llava_ref import images

from ..support.image_files import chunk, laced, png, refused


def rows(h, length, seed=0):
    return [b"\0" + np.random.default_rng(seed).bytes(length) for _ in range(h)]


PNGS = {  # colour type, bits, channels
    "grey 1 bit": (0, 1, 1),
    "grey 2 bits": (0, 2, 1),
    "grey 4 bits": (0, 4, 1),
    "grey": (0, 8, 1),
    "grey 16 bits": (0, 16, 1),
    "RGB": (2, 8, 3),
    "RGB 16 bits": (2, 16, 3),
    "palette 4 bits": (3, 4, 1),
    "palette": (3, 8, 1),
    "grey and alpha": (4, 8, 2),
    "RGBA": (6, 8, 4),
    "RGBA 16 bits": (6, 16, 4),
}
PLTE = chunk(b"PLTE", bytes(range(256)) * 3)


@pytest.mark.parametrize("kind", PNGS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_without_all_rows_is_refused(kind, interlaced):
    colour, depth, channels = PNGS[kind]
    extra = PLTE if colour == 3 and depth == 8 else chunk(b"PLTE", bytes(48)) if colour == 3 else b""
    for w, h in [(13, 11), (1, 9), (3, 1), (5, 4)]:
        bits = depth * channels
        all_rows = list(laced(w, h, bits)) if interlaced else rows(h, (w * bits + 7) // 8)

        def file(count, all_rows=all_rows, w=w, h=h):
            data = png(w, h, depth, colour, b"".join(all_rows[:count]), extra)
            if not interlaced:
                return data
            header = data[12:28] + b"\1"  # the last field
            return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]

        assert images.load(file(len(all_rows))).warnings == ()
        for count in range(len(all_rows)):
            refused(file(count), r"PNG: the pixel data end early: [\d,]+ bytes, expected [\d,]+")


def split_png(raw, pieces, end=b"IEND"):
    packed = zlib.compress(raw)
    size = -(-len(packed) // pieces)
    data = b"".join(chunk(b"IDAT", packed[at : at + size]) for at in range(0, len(packed), size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)) + data + chunk(end)


def test_the_pixels_of_a_png_are_counted_across_chunks_and_to_the_checksum():
    raw = b"".join(rows(16, 48))
    for pieces in (1, 2, 7, 100):
        assert images.load(split_png(raw, pieces)).warnings == ()
        refused(split_png(raw[:-49], pieces), "the pixel data end early: 735 bytes, expected 784")
    packed = zlib.compress(raw)
    for lost in (1, 4):  # bytes of the stream's checksum
        data = png(16, 16, 8, 2, raw).replace(chunk(b"IDAT", packed), chunk(b"IDAT", packed[:-lost]))
        assert images.load(data).warnings == ()
    refused(data.replace(chunk(b"IDAT", packed[:-4]), chunk(b"IDAT", packed[:-40])), "end early")
    refused(data.replace(chunk(b"IDAT", packed[:-4]), chunk(b"IDAT")), "end early: 0 bytes, expected 784")
    refused(data.replace(chunk(b"IDAT", packed[:-4]), chunk(b"IDAT", packed[:-1] + b"x")), "the pixel data are damaged")
    assert images.load(png(16, 16, 8, 2, raw + bytes(10**6))).warnings == (), "surplus data"


def test_counting_a_large_png_takes_little_memory(monkeypatch):
    """Check that rows beyond those of the header are not even decompressed."""
    bomb = png(16, 16, 8, 2, bytes(50_000_000))
    sizes = []
    inflate = zlib.decompressobj

    class Counting:
        def __init__(self):
            self.stream = inflate()

        def decompress(self, data, most):
            sizes.append(len(out := self.stream.decompress(data, most)))
            return out

        def __getattr__(self, name):
            return getattr(self.stream, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    images.load(bomb)
    assert 784 <= sum(sizes) <= 2 * 2**16 and max(sizes) <= 2**16


def test_a_png_without_its_palette_is_refused():
    raw = b"".join(b"\0" + bytes(i % 4 for i in range(8)) for _ in range(8))
    assert images.load(png(8, 8, 8, 3, raw, chunk(b"PLTE", bytes(12)))).warnings == ()
    refused(png(8, 8, 8, 3, raw), "PNG: the palette is missing")
    late = png(8, 8, 8, 3, raw)
    refused(late[:-12] + chunk(b"PLTE", bytes(12)) + late[-12:], "PNG: the palette is missing")
    for size in (0, 10, 771):
        refused(
            png(8, 8, 8, 3, raw, chunk(b"PLTE", bytes(size))), f"a palette of {size} bytes, expected three for each"
        )
