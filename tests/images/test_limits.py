"""Test files that are refused before a pixel is decoded: too large, cut short, or made to cost time."""

import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from llava_ref.errors import ImageError
from llava_ref.images import decoding as images

from ..support.image_files import FORMATS, chunk, encode, noise, png, refused

# Truncation and trailing bytes


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_file_is_refused_unless_it_has_every_pixel(kind):
    data = encode(noise(9, 7), kind)
    whole, accepted = images.decode(data), 0
    for length in range(len(data)):
        try:
            assert np.array_equal(images.decode(data[:length]), whole), length
            accepted += 1
        except ImageError:
            pass
    assert accepted <= {"PNG": 20, "GIF": 2, "BMP": 3}.get(kind, 0)  # checksums and end marks only


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("garbage", [b"\0", b"trailing" * 1000, encode(noise(2, 2), "PNG")])
def test_bytes_after_the_end_change_nothing(kind, garbage):
    data = encode(noise(9, 7), kind)
    assert np.array_equal(images.decode(data + garbage), images.decode(data))


# Limits


def test_the_limits_are_those_promised():
    assert (images.MAX_ENCODED, images.MAX_PIXELS, images.MAX_IMAGES) == (20 * 2**20, 40_000_000, 16)


def test_the_limit_on_encoded_bytes(tmp_path):
    data = encode(noise(4, 4), "PNG")
    padded = data + bytes(images.MAX_ENCODED - len(data))
    assert images.decode(padded).shape == (4, 4, 3)
    refused(padded + b"\0", "image: size: over 20971520 bytes")
    path = tmp_path / "big"
    with open(path, "wb") as file:
        file.truncate(10**12)  # sparse: no more than the limit may be read
    refused(path, "size: over 20971520 bytes")


def liars(w, h):
    """Yield small files whose headers claim w x h pixels."""
    yield "PNG", png(w, h, 8, 2)
    jpeg = bytearray(encode(noise(8, 8), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", h & 0xFFFF, w & 0xFFFF)
    yield "JPEG", bytes(jpeg)
    gif = bytearray(encode(noise(8, 8), "GIF"))
    gif[6:10] = struct.pack("<HH", w & 0xFFFF, h & 0xFFFF)
    yield "GIF", bytes(gif)
    frame = bytearray(encode(noise(8, 8), "GIF"))  # the frame is larger than the screen
    at = frame.index(b"\x2c\0\0\0\0") + 5
    frame[at : at + 4] = struct.pack("<HH", w & 0xFFFF, h & 0xFFFF)
    yield "GIF", bytes(frame)
    bmp = bytearray(encode(noise(8, 8), "BMP"))
    for sign in (1, -1):  # a negative height: rows from the top
        bmp[18:26] = struct.pack("<ii", w, sign * h)
        yield "BMP", bytes(bmp)
    webp = bytearray(encode(noise(8, 8, 4), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"))
    webp[24:30] = struct.pack("<I", w - 1)[:3] + struct.pack("<I", h - 1)[:3]
    yield "WEBP", bytes(webp)


@pytest.mark.parametrize("w, h", [(60_000, 60_000), (6_400, 6_400), (50_000, 801)])
def test_bombs_are_refused_before_a_pixel_is_decoded(w, h, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for kind, data in liars(w, h):
        refused(data, f"image: (size: ({w} x {h}|far more than 40,000,000) pixels|{kind}: the header)")


def test_the_pixel_limit_is_exact():
    assert images.load(np.broadcast_to(np.uint8(0), (6_250, 6_400, 3))).width == 6_400
    problem = "6401 x 6250 pixels, expected at most 40,000,000 pixels and 65,535 a side"
    refused(np.broadcast_to(np.uint8(0), (6_250, 6_401, 3)), problem)
    refused(png(6_401, 6_250, 8, 0), problem)


def test_the_side_limit_is_exact():
    assert images.decode(encode(Image.new("1", (65_535, 1)), "PNG")).shape == (1, 65_535, 3)
    refused(encode(Image.new("1", (1, 65_536)), "PNG"), "1 x 65536 pixels")


def test_pillows_warnings_are_caught_and_those_of_others_are_not():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        refused(png(10_000, 10_000, 8, 0), "size: 10000 x 10000 pixels")
        assert caught == [] and warnings.filters == before


def test_several_threads_may_decode():
    data = [encode(noise(50, 60, seed=i), "PNG") for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(images.decode, data * 4))
    assert all(np.array_equal(rgb, noise(50, 60, seed=i % 8)) for i, rgb in enumerate(got))


@pytest.mark.parametrize("w, h", [(0, 4), (4, 0), (0, 0)])
def test_pictures_without_pixels_are_refused(w, h):
    for kind, data in [("PNG", png(w, h, 8, 2)), *liars(max(w, 1), max(h, 1))][:1]:
        refused(data, kind)
    bmp = bytearray(encode(noise(8, 8), "BMP"))
    bmp[18:26] = struct.pack("<ii", w, h)
    refused(bytes(bmp), "image: ")
    refused(np.zeros((h, w, 3), np.uint8), f"{w} x {h} pixels, expected at least 1 x 1")


def riff(chunks):
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def jpeg_with(segments):
    data = encode(noise(4, 4), "JPEG")
    return data[:2] + segments + data[2:]


def test_long_structures_without_pixels_are_refused(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    exif = b"\xff\xe1\0\x09Exif\0\0x"
    comment = chunk(b"tEXt", b"a\0b")
    gif = encode(noise(4, 4), "GIF")
    at = gif.index(b"\x2c\0\0\0\0")
    progressive = encode(noise(40, 40), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    for data, problem in [
        (jpeg_with(exif * 100_000), "over 100,000 header segments"),
        (jpeg_with(b"\xff\x01" * 100_000), "over 100,000 header segments"),
        (jpeg_with(b"\xff\xfe\0\2junk\xff\xf0\xff\xd0" + exif * 100_000), "over 100,000 header segments"),
        (progressive[:-2] + scan * 50 + b"\xff\xd9", "over 50 scans"),
        (png(1, 1, 8, 0, b"\0\0", comment * 100_000), "over 100,000 chunks"),
        (png(1, 1, 8, 0, b"\0\0", chunk(b"IDAT") * 100_000), "over 100,000 chunks"),
        (gif[:at] + b"\x21\xfe" + b"\x01x" * 100_001 + b"\0" + gif[at:], "over 100,000 blocks before"),
        (gif[:at] + b"\x21\xfe\0" * 100_001 + gif[at:], "over 100,000 blocks before"),
        (gif[:at] + b"\x07\0" * 50_001 + gif[at:], "over 100,000 blocks before"),
        (gif[: at + 11] + b"\x01x" * 100_001 + gif[at + 11 :], "over 100,000 blocks in"),
        (riff(b"VP8X\x0a\0\0\0" + bytes(10) + b"junk\0\0\0\0" * 100_000), "over 100,000 chunks"),
    ]:
        refused(data, problem)
    monkeypatch.undo()
    assert images.decode(jpeg_with(exif * 900)).shape == (4, 4, 3)
    assert images.decode(gif[:at] + b"\x21\xfe" + b"\x01x" * 1000 + b"\0" + gif[at:]).shape == (4, 4, 3)
    assert images.decode(png(1, 1, 8, 0, b"\0\0", comment * 900)).shape == (1, 1, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_is_measured_without_decoding(kind, monkeypatch):
    data = encode(noise(9, 7), kind)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert images.measure(data) == (7, 9)


@pytest.mark.parametrize("data", [b"", b"words", png(8_000, 8_000, 8, 2), bytes(images.MAX_ENCODED + 1)])
def test_measuring_refuses_what_decoding_refuses(data):
    with pytest.raises(ImageError, match="here"):
        images.measure(data, "here")


def test_memory_is_returned_after_a_large_picture(monkeypatch):
    calls = []
    monkeypatch.setattr(images, "give_back", lambda: calls.append(1))
    images.decode(encode(Image.new("L", (2000, 1000)), "PNG"))
    assert calls == []
    images.decode(encode(Image.new("L", (2000, 1001)), "PNG"))
    assert calls == [1]
