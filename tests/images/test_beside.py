"""Test damage beside the pixels, such as in texts or profiles: it never hides a good picture."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from llava_ref.images import decoding as images

from ..support.image_files import FORMATS, chunk, encode, gif, noise, png, segment

RGB = noise(9, 7)
DAMAGED = ("image: EXIF data cannot be read, orientation taken as 1",)


def ifd(*entries, end=bytes(4)):
    """Make the EXIF data of one image file directory."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + end


UPSIDE_DOWN = ifd((0x0112, 3, 1, 3))


# PNG

METADATA = {
    "rendering intent": chunk(b"sRGB"),
    "profile, method": chunk(b"iCCP", b"a\0\5xx"),
    "profile, empty": chunk(b"iCCP"),
    "profile, not packed": chunk(b"iCCP", b"a\0\0xx"),
    "text, method": chunk(b"zTXt", b"a\0\5xx"),
    "text, long": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20))),
    "texts, long together": b"".join(chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(1 << 20))) for i in range(70)),
    "texts, many": chunk(b"tEXt", b"a\0b") * 2000,
    "gamma": chunk(b"gAMA"),
    "white point": chunk(b"cHRM", b"x"),
    "resolution": chunk(b"pHYs", b"\0"),
    "transparency": chunk(b"tRNS", b"\0"),
    "checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"x",
    "animation, none": chunk(b"acTL", struct.pack(">II", 0, 0)),
    "animation, twice": chunk(b"acTL", struct.pack(">II", 1, 0)) * 2,
    "animation, short": chunk(b"acTL", b"\0"),
    "animation, order": chunk(b"acTL", struct.pack(">II", 1, 0))
    + chunk(b"fcTL", struct.pack(">7I", 5, 7, 9, 0, 0, 0, 0)[:26]),
    "animation, small frame": chunk(b"acTL", struct.pack(">II", 1, 0))
    + chunk(b"fcTL", struct.pack(">7I", 0, 3, 3, 0, 0, 0, 0)[:26]),
    "animation, large frame": chunk(b"acTL", struct.pack(">II", 1, 0))
    + chunk(b"fcTL", struct.pack(">7I", 0, 30, 30, 0, 0, 0, 0)[:26]),
}


@pytest.mark.parametrize("kind", METADATA)
def test_a_png_is_read_whatever_its_metadata(kind):
    raw = b"".join(b"\0" + row.tobytes() for row in RGB)
    data = png(7, 9, 8, 2, raw, METADATA[kind])
    after = png(7, 9, 8, 2, raw)[:-12] + METADATA[kind] + chunk(b"IEND")
    for file in (data, after):
        got = images.load(file)
        assert np.array_equal(got.rgb, RGB) and got.warnings == (), file
        assert images.measure(file) == (7, 9)


def test_other_chunks_may_stand_between_the_pixels_of_a_png():
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in RGB))
    apart = chunk(b"IDAT", packed[:50]) + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", packed[50:])
    data = png(7, 9, 8, 2, b"".join(b"\0" + row.tobytes() for row in RGB))
    assert np.array_equal(images.decode(data.replace(chunk(b"IDAT", packed), apart)), RGB)


# JPEG

SEGMENTS = {
    "JFIF, short": segment(0xE0, b"JFIF\0"),
    "Adobe, short": segment(0xEE, b"Adobe"),
    "Photoshop, short": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed"),
    "Photoshop, resolution": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x04abcd"),
    "profile, short": segment(0xE2, b"ICC_PROFILE\0"),
    "profile, parts": segment(0xE2, b"ICC_PROFILE\0\1\3xx"),
    "pictures, rubbish": segment(0xE2, b"MPF\0junk"),
    "pictures, cut": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\5\0"),
    "FlashPix": segment(0xE2, b"FPXR\0"),
    "comment, no length": b"\xff\xfe\0\0",
    "many": segment(0xE5, b"x") * 5000,
}


@pytest.mark.parametrize("kind", SEGMENTS)
def test_a_jpeg_is_read_whatever_its_metadata(kind):
    data = encode(RGB, "JPEG")
    got = images.load(data[:2] + SEGMENTS[kind] + data[2:])
    assert np.array_equal(got.rgb, images.decode(data)) and got.warnings == ()


def renamed(data, names):
    """Give the three components of a JPEG other identifiers."""
    frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    file = bytearray(data)
    file[frame : frame + 9 : 3], file[scan : scan + 6 : 2] = names, names
    return bytes(file)


def test_segments_that_tell_the_colours_of_a_jpeg_are_kept():
    """Check both: without Adobe's segment, components 1, 2, 3 count as YCbCr; without JFIF's, R, G, B as RGB."""
    options = {"quality": 100, "subsampling": 0}
    adobe = renamed(encode(RGB, "JPEG", keep_rgb=True, **options), b"\1\2\3")
    jfif = renamed(encode(RGB, "JPEG", **options), b"RGB")
    for data in (adobe, jfif):
        assert np.abs(images.decode(data).astype(int) - RGB).max() < 12


@pytest.mark.parametrize(
    "exif, orientation, damaged",
    [
        (b"rubbish", 1, DAMAGED),
        (b"II*\0\x08\0\0\0\5\0", 1, ("image: EXIF data are damaged, orientation taken as 1",)),
        (ifd((0x0112, 3, 1, 3))[:-8], 1, ("image: EXIF data are damaged, orientation taken as 1",)),
        (ifd((0x010F, 2, 500, 4000), (0x0112, 3, 1, 3)), 3, ("image: EXIF data are damaged, orientation taken as 3",)),
        (ifd((0x0112, 3, 1, 3), (0x011A, 5, 1, 9999)), 3, ("image: EXIF data are damaged, orientation taken as 3",)),
        (UPSIDE_DOWN, 3, ()),
        (b"", 1, ()),
    ],
)
def test_damaged_exif_data_are_a_warning(exif, orientation, damaged):
    jpeg, webp = encode(RGB, "JPEG"), encode(RGB, "WEBP", lossless=True, exif=exif or b"\0")
    files = [jpeg[:2] + segment(0xE1, b"Exif\0\0" + exif) + jpeg[2 + 18 :]]
    if exif:
        files += [png(7, 9, 8, 2, b"".join(b"\0" + row.tobytes() for row in RGB), chunk(b"eXIf", exif)), webp]
    for file in files:
        got = images.load(file, exif="apply")
        assert (got.rgb.shape, got.orientation, got.warnings) == ((9, 7, 3), orientation, damaged)


def test_the_orientation_is_read_from_every_place_that_pillow_reads():
    raw, jpeg = b"".join(b"\0" + row.tobytes() for row in RGB), encode(RGB, "JPEG")
    xmp = b'<x tiff:Orientation="3"/>'
    text = b"Raw profile type exif\0\nexif\n      26\n" + UPSIDE_DOWN.hex().encode()
    for file in [
        png(7, 9, 8, 2, raw, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)),
        png(7, 9, 8, 2, raw, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0k\0" + zlib.compress(xmp))),
        png(7, 9, 8, 2, raw, chunk(b"tEXt", text)),
        png(7, 9, 8, 2, raw, chunk(b"zTXt", text.replace(b"exif\0", b"exif\0\0", 1)[:23] + zlib.compress(text[22:]))),
        png(7, 9, 8, 2, raw)[:-12] + chunk(b"eXIf", UPSIDE_DOWN) + chunk(b"IEND"),
        jpeg[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp) + jpeg[2:],
        jpeg[:2]
        + segment(0xE1, b"Exif\0\0" + UPSIDE_DOWN[:20])
        + segment(0xE1, b"Exif\0\0" + UPSIDE_DOWN[20:])
        + jpeg[2:],
        encode(RGB, "WEBP", xmp=xmp),
        encode(RGB, "WEBP", exif=UPSIDE_DOWN),
    ]:
        assert images.load(file).warnings == ("image: EXIF orientation 3 is ignored",), file


# GIF, WebP, and the frames after the first


def test_a_gif_is_read_whatever_comes_before_its_first_frame():
    whole = images.decode(gif(4, 2, [0, 1, 2, 3] * 2))
    for before in (b"!\xf9\2\1\0\0", b"!\xf9\1\0\0", b"!\xff\x0bNETSCAPE2.0\1\1\0", b"!\xfe\0", b"\0\7", b"!\1\1x\0"):
        got = images.load(gif(4, 2, [0, 1, 2, 3] * 2, before=before))
        assert np.array_equal(got.rgb, whole) and got.warnings == ()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_damage_after_the_first_frame_changes_nothing(kind):
    frames = [Image.fromarray(noise(16, 16, seed=i)) for i in range(3)]
    data = encode(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    whole = images.load(data)
    for broken in (data[: len(data) * 3 // 4], data[:-60] + bytes(60)):
        got = images.load(broken)
        assert np.array_equal(got.rgb, whole.rgb) and got.warnings == whole.warnings == ()


@pytest.mark.parametrize("kind", FORMATS)
def test_pillow_warns_of_nothing(kind, recwarn):
    images.load(encode(RGB, kind))
    assert not recwarn.list
