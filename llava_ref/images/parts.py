"""The file of a picture, taken apart: its pixels by themselves, and the data that say which way is up.

Pillow reads all that stands beside the pixels (texts, colour profiles, resolution, animation, comments) and refuses a
good picture where one of them is damaged. So it is handed a file of the same format that holds the pixels alone, and
damage elsewhere cannot matter.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ..errors import ImageError

MAX_BLOCKS = 100_000  # chunks of a PNG or WebP, segments of a JPEG's header, blocks of a GIF's first frame
MAX_TEXT = 2**20  # bytes of one text of a PNG

READ = "expected PNG, JPEG, WebP, GIF or BMP"
MAGIC = {  # first bytes -> Pillow's name
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
}
OTHERS = {  # what is not read, by a pattern for its first bytes
    "AVIF": rb".{4}ftyp(avi[fs]|m[is]f1.{4}(.{4}){0,4}?avif)",
    "HEIC": rb".{4}ftyp(he[iv][cmsx]|m[is]f1)",
    "MP4": rb".{4}ftyp",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "ICO": rb"\0\0[\1\2]\0[^\0]",
    "PDF": rb"%PDF-",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "Photoshop": rb"8BPS",
    "PNM": rb"P[1-7]\s",
    "HTML": rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)\b",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<[?!].*?)?<svg\b",
    "XML": rb"(\xef\xbb\xbf)?\s*<\?xml\b",
    "Git LFS pointer": rb"version https://git-lfs",
}
Chunk = tuple[bytes, int, int]  # its name, and where its data begin and end
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """A picture's file without what its pixels do not need."""

    pixels: bytes  # a file of the same format; the first frame of an animation
    exif: bytes = b""
    xmp: bytes = b""
    colours: int | None = None  # in the palette, if the pixels point into one
    frame: tuple[int, int] | None = None  # width and height of the first frame, if the format has frames
    no_transparency: bool = False  # whether a PNG's tRNS chunk is damaged, and left out of `pixels`


def recognise(data: bytes, where: str) -> str:
    """Return Pillow's name of the format that the first bytes tell. Raises ImageError where it is none of the five."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in MAGIC.items():
        if data.startswith(magic):
            return name
    start = data[:1024]
    other = next((name for name, pattern in OTHERS.items() if re.match(pattern, start, re.DOTALL)), None)
    if other:
        raise ImageError(where, "format", f"{other} is not read, {READ}", code="unsupported_image_format")
    problem = f"starts with {data[:12]!r}, {READ}" if data else f"no bytes, {READ}"
    raise ImageError(where, "format", problem, code="unsupported_image_format")


def take_apart(name: str, data: bytes) -> Parts:
    """Split a file of the format `name`. Raises LookupError, struct.error or ValueError where that cannot be done."""
    return SPLIT[name](data)


def limited(items: Iterator[T], what: str) -> Iterator[T]:
    """Yield `items`. Raises ValueError after MAX_BLOCKS of them."""
    for count, item in enumerate(items):
        if count == MAX_BLOCKS:
            raise ValueError(f"over {MAX_BLOCKS:,} {what}")
        yield item


# PNG


def _png(data: bytes) -> Parts:
    """Keep header, palette, transparency and pixels. Animation is left out: a PNG's own picture is in IDAT."""
    header = palette = transparency = b""
    pixels, beside = list[bytes](), dict[bytes, bytes]()
    for kind, start, end in limited(png_chunks(data), "chunks"):
        match kind:
            case b"IHDR" if not header:
                header = data[start - 8 : end + 4]
            case b"PLTE" if not pixels:
                palette = data[start - 8 : end + 4]
            case b"tRNS" if not pixels:
                transparency = data[start - 8 : end + 4]
            case b"IDAT":
                pixels.append(data[start - 8 : end + 4])
            case b"eXIf":
                beside[b"exif"] = data[start:end]
            case b"tEXt" | b"zTXt" | b"iTXt":
                beside |= _png_text(kind, data[start:end])
    if pixels and len(pixels[-1]) < 12 + int.from_bytes(pixels[-1][:4], "big"):
        pixels[-1] = _png_whole(pixels[-1])
    colours = _png_colours(header, palette)
    palette = palette if colours else b""
    sound = _png_transparency(header, transparency)
    file = b"".join([data[:8], header, palette, sound, *pixels, b"\0\0\0\0IEND\xaeB`\x82"])
    exif = beside.get(b"exif") or _exif_of_text(beside.get(b"Raw profile type exif", b""))
    return Parts(file, exif, beside.get(b"XML:com.adobe.xmp", b""), colours, None, sound != transparency)


def png_chunks(data: bytes) -> Iterator[Chunk]:
    at, kind = 8, b""
    while at + 8 <= len(data) and kind != b"IEND":
        kind, length = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def _png_whole(chunk: bytes) -> bytes:
    """Return a chunk that the end of the file cuts, with the length that is there. Nobody looks at its checksum."""
    found = max(0, min(len(chunk) - 8, int.from_bytes(chunk[:4], "big")))
    return struct.pack(">I", found) + chunk[4 : 8 + found] + bytes(4)


def _png_colours(header: bytes, palette: bytes) -> int | None:
    """Return the number of colours in the palette, if it is a picture with one. Raises ValueError where that is bad."""
    if header[17:18] != b"\3":
        return None
    if not palette:
        raise ValueError("the palette is missing")
    size = int.from_bytes(palette[:4], "big")
    if size % 3 or not 3 <= size <= 768 or len(palette) < size + 8:
        raise ValueError(f"a palette of {size} bytes, expected three for each of 1 to 256 colours")
    return size // 3


def _png_transparency(header: bytes, chunk: bytes) -> bytes:
    """Return a tRNS chunk as it is, or nothing if Pillow would refuse the file for it: too short, a wrong checksum."""
    least = {b"\0": 2, b"\2": 6}.get(header[17:18], 0)  # bytes for one grey value, one colour; a palette may give none
    whole = 12 + least <= len(chunk) == 12 + int.from_bytes(chunk[:4], "big") <= 12 + 256
    return chunk if whole and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big") else b""


def _png_text(kind: bytes, body: bytes) -> dict[bytes, bytes]:
    """Return {keyword: text} of a text chunk; nothing where it is damaged or long."""
    keyword, _, text = body.partition(b"\0")
    packed = kind == b"zTXt"
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":
        packed, text = text[:1] == b"\1", (text[2:].split(b"\0", 2) + [b"", b"", b""])[2]
    try:
        return {keyword: zlib.decompressobj().decompress(text, MAX_TEXT) if packed else text}
    except zlib.error:
        return {}


def _exif_of_text(text: bytes) -> bytes:
    """Return the EXIF data that ImageMagick wrote as a text: three lines, then hexadecimal digits."""
    digits = b"".join(text.split(b"\n")[3:])
    return bytes.fromhex(digits.decode("latin-1")) if re.fullmatch(rb"([0-9a-fA-F]{2})*", digits) else b"damaged"


# JPEG


def _jpeg(data: bytes) -> Parts:
    """Keep all that the decoder looks at: of the application segments, JFIF's and Adobe's say what the colours are."""
    kept, exif, xmp, scans = [data[:2]], b"", b"", len(data)
    for marker, start, end in limited(jpeg_header(data), "header segments"):
        body = data[start + 4 : end]
        if marker == 0xDA:
            scans = start
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif += body[6:]
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body.partition(b"\0")[2]
        elif _jpeg_needs(marker, body):
            kept.append(data[start:end])
    return Parts(b"".join(kept) + data[scans:], exif, xmp)


def _jpeg_needs(marker: int, body: bytes) -> bool:
    """Tell whether libjpeg looks at a segment: of the application's, at JFIF and Adobe of at least this size."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 14
    if marker == 0xEE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return not 0xE1 <= marker <= 0xEF and marker != 0xFE


def jpeg_header(data: bytes, at: int = 2) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments up to the next scan's header, which is the last. Skips other bytes."""
    at, marker = data.find(b"\xff", at), 0
    while 0 <= at < len(data) - 1 and marker != 0xDA:
        marker, length = data[at + 1], 0
        if 0xC0 <= marker <= 0xFE and marker != 0xC8 and not 0xD0 <= marker <= 0xD9 and not 0xF0 <= marker <= 0xFD:
            length = max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        if marker not in (0, 0xFF):
            yield marker, at, at + 2 + length
        at = data.find(b"\xff", at + 1 + (marker != 0xFF) + length)


# GIF


def _gif(data: bytes) -> Parts:
    """Keep the screen, its palette, the control of the first frame, and that frame."""
    palette, at = _gif_palette(data, 10, 13)
    kept = [data[:at]]
    for label, start, end in limited(_gif_extensions(data, at), "blocks before the first frame"):
        at = end
        if label == 0xF9 and data[start + 2] >= 4:
            kept.append(data[start:end])
    if data[at] != 0x2C:
        raise ValueError("holds no frame")
    own, start = _gif_palette(data, at + 9, at + 10)
    if not (own or palette):
        raise ValueError("the palette is missing")
    *_, end = limited(_gif_blocks(data, start + 1), "blocks in the first frame")
    file = b"".join(kept) + data[at:end] + (b";" if end <= len(data) else b"")
    return Parts(file, colours=own or palette, frame=struct.unpack_from("<HH", data, at + 5))


def _gif_extensions(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield (label, start, end) of each extension before the first frame; (0, start, end) for its blocks, and for bytes
    between extensions, which Pillow passes over."""
    while data[at] not in b",;":
        start, label = at, data[at + 1] if data[at] == 0x21 else 0
        for at in _gif_blocks(data, start + 2) if label else [start + 1]:
            yield 0, start, at
        yield label, start, at


def _gif_palette(data: bytes, flags: int, start: int) -> tuple[int, int]:
    """Return the number of colours, 0 without a palette, and where it ends."""
    colours = 2 << (data[flags] & 7) if data[flags] & 0x80 else 0
    return colours, start + 3 * colours


def _gif_blocks(data: bytes, at: int) -> Iterator[int]:
    """Yield where each block of a chain ends; the last one is empty. Past the end of the file where that is cut."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
        yield at
    yield at + 1


# WebP


def _webp(data: bytes) -> Parts:
    """Keep the picture, or the first frame of an animation. A file cut within them is kept as it is."""
    kept, beside = [], dict[bytes, bytes]()
    frame, done, flags = None, False, 0
    for kind, start, end in limited(_webp_chunks(data), "chunks"):
        if (kind == b"EXIF" and flags & 8) or (kind == b"XMP " and flags & 4):
            beside[kind] = data[start:end]
        if done or kind not in (b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"):
            continue
        if end > min(len(data), 8 + int.from_bytes(data[4:8], "little")):
            return Parts(data)
        body = data[start:end]
        if kind == b"VP8X":
            flags, body = body[0], bytes([body[0] & 0x12]) + body[1:]  # leaves alpha and animation
        elif kind == b"ANMF":
            frame = int.from_bytes(body[6:9], "little") + 1, int.from_bytes(body[9:12], "little") + 1
        kept.append(data[start - 8 : start] + body + bytes(len(body) % 2))
        done = kind in (b"VP8 ", b"VP8L", b"ANMF")
    riff = b"WEBP" + b"".join(kept)
    file = b"RIFF" + struct.pack("<I", len(riff)) + riff
    return Parts(file, beside.get(b"EXIF", b""), beside.get(b"XMP ", b""), frame=frame)


def _webp_chunks(data: bytes) -> Iterator[Chunk]:
    at, end = 12, 8 + int.from_bytes(data[4:8], "little")
    while at + 8 <= min(end, len(data)):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, at + 8 + size
        at += 8 + size + size % 2


# BMP


def _bmp(data: bytes) -> Parts:
    """Write pictures with a palette again, with all its 256 colours: Pillow takes a shorter one of greys for another
    depth (8 bits with black and white are read as 1 bit). Colours that the file lacks are black."""
    offset, size = struct.unpack_from("<II", data, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = used = 0
    else:
        width, height, _, bits, compression, _, _, _, used = struct.unpack_from("<IIHHIIIII", data, 18)
    start = 14 + size
    if 0 < offset < start:
        raise ValueError(f"the pixels begin at byte {offset}, within the header")
    if bits not in (1, 4, 8) or size not in (12, 40, 52, 56, 64, 108, 124):
        return Parts(data)
    entry, used = 3 if size == 12 else 4, used or 1 << bits
    pixels = offset if offset > start else start + entry * used  # some writers do not count the palette
    colours = min(used, (pixels - start) // entry, 1 << bits)
    table = [data[start + i * entry : start + i * entry + 3].ljust(4, b"\0") for i in range(colours)]
    info = struct.pack("<IIIHHIIIIII", 40, width, height, 1, bits, compression, 0, 0, 0, 256, 0)
    head = b"BM" + struct.pack("<III", 0, 0, 1078) + info
    return Parts(head + b"".join(table).ljust(1024, b"\0") + data[pixels:], colours=colours)


SPLIT: dict[str, Callable[[bytes], Parts]] = {"PNG": _png, "JPEG": _jpeg, "GIF": _gif, "WEBP": _webp, "BMP": _bmp}
