"""Test decoding: five formats by content, limits before pixels; alpha, palettes, 16 bits, CMYK and EXIF."""

import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from llava_ref import images
from llava_ref.errors import ImageError

from ..support.image_files import FORMATS, bmp, chunk, encode, noise, png, refused

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "BMP": {}}


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("h, w", [(1, 1), (5, 7), (1, 10_000), (10_000, 1)])
def test_lossless_formats_give_the_pixels_back(kind, h, w):
    rgb = noise(h, w)
    got = images.load(encode(rgb, kind, **LOSSLESS[kind]))
    assert got.rgb.dtype == np.uint8 and np.array_equal(got.rgb, rgb)
    assert (got.format, got.width, got.height, got.orientation, got.warnings) == (kind, w, h, 1, ())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes_as_pillow_does(kind):
    data = encode(noise(13, 9), kind)
    assert np.array_equal(images.decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_name_of_a_file_does_not_matter(kind, tmp_path):
    path = tmp_path / "picture.tiff"
    path.write_bytes(encode(noise(4, 3), kind))
    assert images.load(path).format == images.load(str(path)).format == kind


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PCX", "DIB", "SGI", "TGA", "EPS"])
def test_other_formats_that_pillow_reads_are_refused(kind):
    refused(encode(noise(16, 16), kind), "image: format: .*expected PNG, JPEG, WebP, GIF or BMP")


@pytest.mark.parametrize("kind", FORMATS)
def test_pillow_may_read_only_one_format(kind, monkeypatch):
    opened, original = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, formats: opened.append(formats) or original(file, formats=formats))
    images.decode(encode(noise(4, 4), kind))
    assert opened and all(formats == [kind] for formats in opened)


def test_only_the_decoder_of_the_magic_bytes_runs():
    refused(b"\x89PNG\r\n\x1a\n" + encode(noise(4, 4), "TIFF"), "PNG: the header is damaged")


def test_a_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    got = images.decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (got == (255, 0, 0)).all()


def test_a_jpeg_with_a_broken_multi_picture_index_is_still_a_jpeg():
    data = encode(noise(4, 4), "JPEG")
    index = b"\xff\xe2" + struct.pack(">H", 10) + b"MPF\0junk"
    assert np.array_equal(images.decode(data[:2] + index + data[2:]), images.decode(data))


@pytest.mark.parametrize("data", [b"", b"x", b"\x89PNG", b"RIFF", b"RIFF\0\0\0\0WAVE", b"\x1b[31m\n"])
def test_other_bytes_are_refused_on_one_printable_line(data):
    refused(data, "^image: format: starts with|^image: format: no bytes")


def box(brand, others=b""):
    """Make the first box of an ISO file."""
    return struct.pack(">I", 16 + len(others)) + b"ftyp" + brand + bytes(4) + others


NAMED = {
    "HEIC": [box(b"heic"), box(b"mif1", b"mif1heic"), box(b"hevc"), box(b"msf1", b"hevc")],
    "AVIF": [box(b"avif"), box(b"avis"), box(b"mif1", b"miafavif")],
    "MP4": [box(b"isom"), box(b"qt  ")],
    "TIFF": [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0"],
    "ICO": [b"\0\0\1\0\1\0\x10\x10", b"\0\0\2\0\1\0\x10\x10"],
    "SVG": [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a -->\n<svg>"],
    "HTML": [b"<!DOCTYPE html><html><svg>", b"\n  <HTML lang='en'>", b"<!-- saved --><html>"],
    "XML": [b"<?xml version='1.0'?><feed>"],
    "PDF": [b"%PDF-1.7\n"],
    "JPEG XL": [b"\xff\x0a\x10", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "JPEG 2000": [b"\xff\x4f\xff\x51\0", b"\0\0\0\x0cjP  \r\n\x87\n"],
    "Git LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0"],
}


@pytest.mark.parametrize("name", NAMED)
def test_an_unsupported_format_is_named(name):
    for data in NAMED[name]:
        refused(data, f"^image: format: {name} is not supported, expected PNG, JPEG, WebP, GIF or BMP$")


def test_pillows_messages_and_classes_are_never_shown():
    rgb = noise(9, 9)
    broken = [encode(rgb, kind)[:-30] for kind in FORMATS]
    broken += [data[:40] + bytes(20) + data[60:] for data in map(encode, [rgb] * 5, FORMATS)]
    broken += [png(3, 3, 7, 2), png(60_000, 60_000, 8, 2), bmp(3, 3, 24, bytes(36), compression=4)]
    for data in broken:
        try:
            images.load(data)
        except ImageError as error:
            assert not re.search(r"[A-Z]\w+(Error|Warning)|image file|DOS attack|broken", str(error)), error
    problem = "far more than 40,000,000 pixels, expected at most 40,000,000 pixels and 65,535 a side"
    assert str(refused(png(60_000, 60_000, 8, 2), "size")) == f"image: size: {problem}"


# Sources


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        refused(path, "regular file|directory", where="messages[0]")
    refused(tmp_path / "missing", "No such file")
    refused("nul\0byte", "null byte")


def test_arrays_are_taken_as_they_are():
    rgb = noise(5, 7)
    assert np.array_equal(images.load(rgb[:, ::-1]).rgb, rgb[:, ::-1])
    for array in (rgb[..., 0], rgb.astype(np.float32), noise(5, 7, 4), rgb[None], rgb.astype(object)):
        refused(array, r"image: array: .*expected uint8 \(height, width, 3\)")
    refused(np.lib.stride_tricks.as_strided(rgb, (10_000, 10_000, 3), (0, 0, 1)), "10000 x 10000 pixels")
    refused(42, "image: type: int, expected bytes, a path, a PIL image or an array")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_pil_images_are_converted(mode):
    image = Image.fromarray(noise(5, 7)).convert("RGB")
    image = ImageOps.grayscale(image).convert(mode) if mode == "LA" else image
    image = image.convert(mode) if mode != "LAB" else Image.new("LAB", (7, 5), (90, 100, 110))
    got = images.load(image)
    assert np.array_equal(got.rgb, np.asarray(image.convert("RGB"))) and got.format == "PIL image"


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pil_images_without_8_bit_colours_are_refused(mode):
    refused(Image.new(mode, (3, 3)), f"mode {mode} has no 8-bit colours")


def test_a_pil_image_over_the_limit_is_refused_before_it_is_loaded(monkeypatch):
    image = Image.open(io.BytesIO(png(9000, 9000, 8, 2)))
    monkeypatch.setattr(image, "load", lambda: pytest.fail("decoded"))
    refused(image, "9000 x 9000 pixels")


# One rule each: 16 bits, alpha, CMYK, EXIF


@pytest.mark.parametrize("colour, bands", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_values_are_shifted_right_by_8(colour, bands):
    values = np.random.default_rng(0).integers(0, 65536, (5, 3, bands), dtype=np.uint16)
    data = png(3, 5, 16, colour, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    got = images.decode(data)
    assert np.array_equal(got, np.broadcast_to((values >> 8)[..., : 3 if bands > 2 else 1], (5, 3, 3)))


@pytest.mark.parametrize("alpha", ["convert", "drop"])
def test_colours_under_alpha_are_taken_as_stored(alpha):
    rgba = noise(5, 7, 4)
    for kind in ("PNG", "WEBP"):
        assert np.array_equal(images.decode(encode(rgba, kind, **LOSSLESS[kind]), alpha=alpha), rgba[..., :3])
    grey = Image.merge("LA", [Image.fromarray(rgba[..., i]) for i in (0, 3)])
    assert np.array_equal(images.decode(encode(grey, "PNG"), alpha=alpha), rgba[..., [0, 0, 0]])
    palette = Image.new("P", (2, 2))
    palette.putpalette(range(12))
    palette.putdata([0, 1, 2, 3])
    for transparency in (1, b"\0\x80\xff\x10"):
        got = images.decode(encode(palette, "PNG", transparency=transparency), alpha=alpha)
        assert got.reshape(-1).tolist() == list(range(12))
    keyed = encode(rgba[..., :3], "PNG", transparency=tuple(map(int, rgba[0, 0, :3])))
    assert np.array_equal(images.decode(keyed, alpha=alpha), rgba[..., :3])


def over_white(colours, alpha):
    """Lay colours (..., 3) over white by alphas (...), 0..255, rounding to nearest."""
    alpha = alpha[..., None].astype(int)
    return (colours.astype(int) * alpha + 255 * (255 - alpha) + 127) // 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_alpha_channel_is_laid_over_white(kind):
    rgba = noise(5, 7, 4)
    got = images.decode(encode(rgba, kind, **LOSSLESS[kind]), alpha="white")
    assert np.array_equal(got, over_white(rgba[..., :3], rgba[..., 3]))
    assert np.array_equal(images.load(Image.fromarray(rgba), alpha="white").rgb, got)


def test_transparent_colours_are_laid_over_white():
    grey = noise(5, 7, 2)
    got = images.decode(encode(Image.fromarray(grey, "LA"), "PNG"), alpha="white")
    assert np.array_equal(got, over_white(grey[..., [0, 0, 0]], grey[..., 1]))
    palette = Image.new("P", (2, 2))
    palette.putpalette(range(12))
    palette.putdata([0, 1, 2, 3])
    colours = np.arange(12).reshape(2, 2, 3)
    for transparency, alphas in ((1, [255, 0, 255, 255]), (b"\0\x80\xff\x10", [0, 128, 255, 16])):
        got = images.decode(encode(palette, "PNG", transparency=transparency), alpha="white")
        assert np.array_equal(got, over_white(colours, np.array(alphas).reshape(2, 2)))
    rgb = noise(5, 7)
    rgb[2, 3] = rgb[0, 0]
    got = images.decode(encode(rgb, "PNG", transparency=tuple(map(int, rgb[0, 0]))), alpha="white")
    rgb[2, 3] = rgb[0, 0] = 255
    assert np.array_equal(got, rgb)


def test_16_bit_grey_has_a_transparent_value_too():
    values = np.array([[0x1234, 0x1235], [0x5678, 0x1234]], ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    got = images.decode(png(2, 2, 16, 0, rows, chunk(b"tRNS", b"\x12\x34")), alpha="white")
    assert got[..., 0].tolist() == [[255, 0x12], [0x56, 255]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_white_changes_no_opaque_picture(kind):
    data = encode(noise(9, 7), kind)
    assert np.array_equal(images.decode(data, alpha="white"), images.decode(data))


@pytest.mark.parametrize("damage", ["short", "checksum", "long"])
def test_damaged_transparency_is_a_warning_if_it_matters(damage):
    rgb = noise(2, 2)
    whole = chunk(b"tRNS", b"\0\1\0\2\0\3")
    extra = {"short": chunk(b"tRNS", b"\0\1\0"), "checksum": whole[:-1] + b"x", "long": chunk(b"tRNS", bytes(257))}
    data = png(2, 2, 8, 2, b"".join(b"\0" + row.tobytes() for row in rgb), extra[damage])
    got = images.load(data, alpha="white")
    assert np.array_equal(got.rgb, rgb) and got.warnings == (
        "image: PNG: the transparency (tRNS) is damaged, and ignored",
    )
    assert images.load(data).warnings == ()


def gif(background, screen=(6, 4)):
    """Make a GIF of 4 x 2 pixels at (1, 1) of the screen, with indices 0 1 2 3, of which 2 is transparent."""
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.putdata([0, 1, 2, 3] * 2)
    data = bytearray(encode(image, "GIF", transparency=2, optimize=False))
    data[6:10], data[11] = struct.pack("<HH", *screen), background
    at = data.index(b"\x2c\0\0\0\0") + 1
    data[at : at + 4] = struct.pack("<HH", 1, 1)
    return bytes(data)


def test_pixels_that_a_gifs_first_frame_does_not_draw():
    """Check the colours measured with stb_image in llama.cpp b11548, including BGR around the frame."""
    convert = images.decode(gif(3))
    drop, plain = images.decode(gif(3), alpha="drop"), images.decode(gif(0), alpha="drop")
    assert convert[1, 3].tolist() == convert[0, 0].tolist() == [70, 80, 90], "the transparent index's colour"
    assert images.decode(gif(3), alpha="white")[1, 3].tolist() == [255, 255, 255], "transparent pixels are white"
    assert drop[1, 3].tolist() == [0, 0, 0] and drop[0, 0].tolist() == [120, 110, 100]
    assert plain[1, 3].tolist() == plain[0, 0].tolist() == [0, 0, 0]
    assert drop[1, 1].tolist() == convert[1, 1].tolist() == [10, 20, 30]
    assert images.decode(gif(200), alpha="drop")[0, 0].tolist() == [0, 0, 0], "no such colour"


def test_cmyk_jpegs_are_inverted_as_adobe_writes_them():
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan
    for options in ({}, {"progressive": True}):
        r, g, b = images.decode(encode(cmyk, "JPEG", quality=95, **options))[8, 8].tolist()
        assert r < 5 and g > 250 and b > 250


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation(kind, orientation):
    image = Image.fromarray(noise(5, 7))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encode(image, kind, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    ignored, applied = images.load(data), images.load(data, exif="apply", where="photo")
    assert np.array_equal(ignored.rgb, stored) and ignored.orientation == applied.orientation == orientation
    assert ignored.warnings == ((f"image: EXIF orientation {orientation} is ignored",) if orientation != 1 else ())
    assert np.array_equal(applied.rgb, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert applied.warnings == () and applied.rgb.flags.c_contiguous


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_counts_as_1(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert images.load(encode(noise(2, 3), "PNG", exif=exif), exif="apply").orientation == 1


def test_broken_exif_data_are_a_warning():
    got = images.load(encode(noise(2, 3), "PNG", exif=b"Exif\0\0rubbish"), where="a\nb")
    assert got.orientation == 1
    assert got.warnings == ("a\\nb: EXIF data cannot be read, orientation taken as 1",)
