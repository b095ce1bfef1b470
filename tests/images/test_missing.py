"""Test files without all their pixels: an error if other readers refuse them, a warning if these show something.

docs/pictures.md has the table. Each kind has a control: the same file with all its pixels is read without a warning.
"""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from llava_ref import images
from llava_ref.errors import ImageError

from ..support.image_files import bmp, chunk, encode, gif, noise, png, refused, segment

# Palettes: indices past the end


GREYS = b"".join(bytes([40 + i, 40 + i, 40 + i, 0]) for i in range(16))


@pytest.mark.parametrize(
    "kind, file",
    [
        ("PNG", lambda top: png(4, 1, 8, 3, bytes([0, 0, 1, 2, top]), chunk(b"PLTE", bytes(range(24))))),
        ("PNG", lambda top: png(4, 1, 4, 3, bytes([0, 0x12, top]), chunk(b"PLTE", bytes(range(24))))),
        ("GIF", lambda top: gif(4, 1, [0, 1, 2, top], colours=8)),
        ("GIF", lambda top: gif(4, 1, [0, 1, 2, top], colours=16, own=8)),
        ("BMP", lambda top: bmp(4, 1, 8, bytes([0, 1, 2, top]), GREYS[:32], used=8)),
        ("BMP", lambda top: bmp(4, 1, 4, bytes([0x01, 0x20 | top, 0, 0]), GREYS[:32], used=8)),
        ("BMP", lambda top: bmp(4, 1, 8, bytes([0, 1, 2, top]), GREYS[:32])),  # claims 256, has 8
        ("BMP", lambda top: bmp(4, 1, 8, b"\2\1" + bytes([2, top]) + b"\0\1", GREYS[:32], 1, 8)),
    ],
)
def test_a_colour_outside_the_palette_is_a_warning(kind, file):
    assert images.load(file(7)).warnings == ()
    warning = f"photo: {kind}: pixels of colour 9, which is not in the palette of 8"
    assert images.load(file(9), where="photo").warnings == (warning,)


def test_a_gif_without_any_palette_is_refused():
    refused(gif(4, 1, [0, 1, 2, 3], colours=0), "GIF: the palette is missing")
    assert images.load(gif(4, 1, [0, 1, 2, 3], colours=0, own=4)).warnings == ()


# JPEG


def smooth(w, h, mode="RGB"):
    small = Image.fromarray(noise(h // 8 + 2, w // 8 + 2))
    return small.resize((w, h), Image.Resampling.BICUBIC).convert(mode)


JPEGS = {
    "baseline": {},
    "no subsampling": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "restarts by rows": {"restart_marker_rows": 1, "progressive": True},
    "own tables": {"optimize": True, "subsampling": 1},
}
EARLY = "image: JPEG: the coded data end early: some pixels are not in the file"


def scans(data):
    """Return the offset of the coded data of each scan."""
    starts, at = [], data.find(b"\xff\xda")
    while at >= 0:
        starts.append(at + 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
        at = data.find(b"\xff\xda", at + 2)
    return starts


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_cut_anywhere_is_a_warning(kind, mode):
    """Cut a JPEG and add the marker that ends a picture. If no pixel changes, none is missing."""
    for picture in (smooth(45, 37, mode), Image.new(mode, (32, 32), "white")):
        data = encode(picture, "JPEG", **JPEGS[kind])
        whole = images.load(data)
        assert whole.warnings == ()
        for cut in range(scans(data)[-1], len(data) - 2):
            if data[cut - 1] == 0xFF:
                continue
            got = images.load(data[:cut] + b"\xff\xd9")
            assert np.array_equal(got.rgb, whole.rgb) or len(got.warnings) == 1, cut
            if cut < len(data) - 4:
                assert got.warnings, cut


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 9), (64, 3), (100, 75)])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_whole_jpeg_gives_no_warning(kind, size):
    for picture in (smooth(*size), Image.fromarray(noise(*size[::-1])), Image.new("RGB", size, (128, 128, 128))):
        data = encode(picture, "JPEG", **JPEGS[kind])
        got = images.load(data)
        assert got.warnings == () and np.array_equal(got.rgb, np.asarray(Image.open(io.BytesIO(data))))
        thumbnail = segment(0xE1, b"thumbnail: " + encode(smooth(16, 16), "JPEG")[:-40] + b"\xff\xd9")
        longer = data[:2] + thumbnail + data[2:-2] + b"\xff\xff" + data[-2:] + data[:-30]
        assert images.load(longer).warnings == () and np.array_equal(images.decode(longer), got.rgb)


def test_a_jpeg_without_all_restarts_is_a_warning():
    data = encode(smooth(64, 48), "JPEG", restart_marker_blocks=2)
    marks = [at for at in range(len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    lost = data[: marks[1]] + data[marks[2] :]
    assert images.load(lost).warnings == ("image: JPEG: the coded data end early, between two restarts",)
    short = data[: marks[2] - 4] + data[marks[2] :]
    assert images.load(short).warnings == (EARLY,)


def test_a_jpeg_without_all_scans_is_a_warning():
    data = encode(smooth(64, 48), "JPEG", progressive=True)
    tables = [at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xc4", b"\xff\xda")]
    ends = [at for at in tables if at > scans(data)[0]]
    warning = "image: JPEG: scans are missing, and detail or colour with them"
    for end in ends:
        if data[end : end + 2] == b"\xff\xda" or end in ends[:1]:
            assert images.load(data[:end] + b"\xff\xd9").warnings == (warning,)
    baseline = bytearray(encode(smooth(64, 48), "JPEG", subsampling=0))
    at = baseline.index(b"\xff\xda")
    only = bytes(baseline[:at]) + segment(0xDA, b"\1\1\0\0\x3f\0") + bytes(baseline[at + 14 :])
    assert images.load(only).warnings[0] == warning, "one of three components"


def test_a_jpeg_taller_than_its_data_is_a_warning():
    data = bytearray(encode(smooth(64, 48), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    for height, warnings in [(48, ()), (41, ()), (49, (EARLY,)), (480, (EARLY,))]:
        data[at : at + 2] = struct.pack(">H", height)
        assert images.load(bytes(data)).warnings == warnings


# GIF, WebP: frames


def test_a_gif_with_too_few_codes_is_refused():
    indices = [i % 15 for i in range(256)]
    assert images.load(gif(16, 16, indices)).warnings == ()
    for count in (255, 200, 16, 0):
        for after in (b"", gif(16, 16, indices)[61:-1], bytes(range(256)) * 9):
            refused(gif(16, 16, indices[:count], after=after), "GIF: the pixel data are damaged, or cut short")


def test_pillow_gets_a_gif_up_to_the_end_of_its_first_frame(monkeypatch):
    """Check the bytes that Pillow gets: after a short frame it would take what follows for codes."""
    opened, original = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, formats: opened.append(file.getvalue()) or original(file, formats=formats)
    )
    images.load(gif(4, 4, [1] * 16, after=b"," + bytes(100)))
    assert opened == [gif(4, 4, [1] * 16)]


def test_a_first_frame_smaller_than_the_picture_is_a_warning():
    assert images.load(gif(8, 8, [1] * 64)).warnings == ()
    got = images.load(gif(8, 6, [1] * 16, frame=(2, 2, 4, 4)))
    note = "GIF: the first frame has 4 x 4 of 8 x 6 pixels, the others are not in the file"
    assert got.rgb.shape == (6, 8, 3) and got.warnings == (f"image: {note}",)
    frames = [Image.fromarray(noise(16, 16, seed=i)) for i in range(2)]
    webp = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert images.load(webp).warnings == ()
    at = webp.index(b"VP8X") + 12
    wider = webp[:at] + struct.pack("<I", 31)[:3] + webp[at + 3 :]
    assert "WEBP: the first frame has 16 x 16 of 32 x 16 pixels" in images.load(wider).warnings[0]


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_whose_chunk_ends_early_is_refused_or_complete(lossless):
    data = encode(smooth(40, 30), "WEBP", lossless=lossless)
    whole = images.decode(data)
    for size in range(1, len(data) - 20):
        body = data[20 : 20 + size]
        short = data[12:16] + struct.pack("<I", size) + body + bytes(size % 2)
        try:
            got = images.load(b"RIFF" + struct.pack("<I", 4 + len(short)) + b"WEBP" + short)
        except ImageError:
            continue
        assert np.array_equal(got.rgb, whole), size


# BMP


def test_a_bmp_without_all_rows_is_refused():
    for bits, header in [(24, 40), (8, 40), (8, 12), (4, 12), (1, 40), (32, 40), (16, 40), (8, 124)]:
        stride = (6 * bits + 31) // 32 * 4
        palette = bytes(range(256)) * 4 if bits <= 8 else b""
        palette = palette[: (3 if header == 12 else 4) << bits] if bits <= 8 else b""
        data = bytes(range(stride)) * 5
        assert images.load(bmp(6, 5, bits, data, palette, header=header)).warnings == ()
        refused(
            bmp(6, 5, bits, data[:-stride], palette, header=header), "BMP: the pixel data are damaged, or cut short"
        )
    refused(bmp(6, 5, 24, bytes(100), offset=20), "BMP: the pixels begin at byte 20, within the header")


def test_a_run_length_coded_bmp_without_all_rows_is_refused_or_a_warning():
    palette = GREYS * 16
    line = {1: b"\x06\7\0\0", 2: b"\x06\x77\0\0"}
    for compression, bits in [(1, 8), (2, 4)]:
        code, table = line[compression], palette[: 4 << bits]
        assert images.load(bmp(6, 5, bits, code * 5 + b"\0\1", table, compression)).warnings == ()
        absolute = b"\0\6" + bytes(6 if bits == 8 else 4) + b"\0\0"
        assert images.load(bmp(6, 5, bits, absolute * 5 + b"\0\1", table, compression)).warnings == ()
        refused(bmp(6, 5, bits, code * 4 + b"\0\1", table, compression), "damaged, or cut short")
        notes = ("image: BMP: rows end early: some pixels are not in the file",)
        for early in (code * 4 + b"\5\7\0\0\0\1", b"\0\2\1\1" + code * 4 + b"\0\1", b"\5\7\0\0" * 5 + b"\0\1"):
            assert images.load(bmp(6, 5, bits, early, table, compression)).warnings == notes, early


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bmp_with_a_palette_of_few_greys_keeps_its_depth(bits):
    """Read black and white, which Pillow takes for 1 bit whatever the depth."""
    data = bytes([0, 1, 1, 0]) if bits == 8 else bytes([0x01, 0x10, 0, 0])
    got = images.load(bmp(4, 1, bits, data, b"\0\0\0\0\xff\xff\xff\0", used=2))
    assert got.rgb[0, :, 0].tolist() == [0, 255, 255, 0] and got.warnings == ()
    identity = b"".join(bytes([i, i, i, 0]) for i in range(16))
    got = images.load(bmp(4, 1, bits, data, identity, used=16))
    assert got.rgb[0, :, 0].tolist() == [0, 1, 1, 0]
