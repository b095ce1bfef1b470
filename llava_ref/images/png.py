"""Take a PNG apart, and check that it has all its pixels."""

import re
import struct
import zlib
from collections.abc import Iterator

from .container import Chunk, Parts, limited

MAX_TEXT = 2**20  # bytes of one text
STEP = 1 << 16  # bytes decompressed at once
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each colour type


def split(data: bytes) -> Parts:
    """Keep header, palette, transparency and the pixels in IDAT. Other frames of an animation are dropped."""
    header = palette = transparency = b""
    pixels, metadata = list[bytes](), dict[bytes, bytes]()
    for kind, start, end in limited(chunks(data), "chunks"):
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
                metadata[b"exif"] = data[start:end]
            case b"tEXt" | b"zTXt" | b"iTXt":
                metadata |= _text(kind, data[start:end])
    if pixels and len(pixels[-1]) < 12 + int.from_bytes(pixels[-1][:4], "big"):
        pixels[-1] = _shortened(pixels[-1])
    colours = _colours(header, palette)
    palette = palette if colours else b""
    kept = _transparency(header, transparency)
    file = b"".join([data[:8], header, palette, kept, *pixels, b"\0\0\0\0IEND\xaeB`\x82"])
    exif = metadata.get(b"exif") or _exif_of_text(metadata.get(b"Raw profile type exif", b""))
    return Parts(file, exif, metadata.get(b"XML:com.adobe.xmp", b""), colours, None, kept != transparency)


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks up to IEND or the end of the file."""
    offset, kind = 8, b""
    while offset + 8 <= len(data) and kind != b"IEND":
        kind, length = data[offset + 4 : offset + 8], int.from_bytes(data[offset : offset + 4], "big")
        yield kind, offset + 8, offset + 8 + length
        offset += 12 + length


def _shortened(chunk: bytes) -> bytes:
    """Shorten a chunk that the end of the file cuts to the bytes there are. Its checksum is never checked."""
    size = max(0, min(len(chunk) - 8, int.from_bytes(chunk[:4], "big")))
    return struct.pack(">I", size) + chunk[4 : 8 + size] + bytes(4)


def _colours(header: bytes, palette: bytes) -> int | None:
    """Count the colours of the palette; None for a picture without one. Raises ValueError if it is malformed."""
    if header[17:18] != b"\3":
        return None
    if not palette:
        raise ValueError("the palette is missing")
    size = int.from_bytes(palette[:4], "big")
    if size % 3 or not 3 <= size <= 768 or len(palette) < size + 8:
        raise ValueError(f"a palette of {size} bytes, expected three for each of 1 to 256 colours")
    return size // 3


def _transparency(header: bytes, chunk: bytes) -> bytes:
    """Return a tRNS chunk as it is, or b"" if Pillow would refuse the file for it: too short, a wrong checksum."""
    least = {b"\0": 2, b"\2": 6}.get(header[17:18], 0)  # bytes of one grey value, one colour; a palette may have none
    whole = 12 + least <= len(chunk) == 12 + int.from_bytes(chunk[:4], "big") <= 12 + 256
    return chunk if whole and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big") else b""


def _text(kind: bytes, body: bytes) -> dict[bytes, bytes]:
    """Return {keyword: text} of a text chunk. A damaged text is dropped, a long compressed one is cut."""
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
    """Decode the EXIF data that ImageMagick writes as a text: three lines, then hexadecimal digits."""
    digits = b"".join(text.split(b"\n")[3:])
    return bytes.fromhex(digits.decode("latin-1")) if re.fullmatch(rb"([0-9a-fA-F]{2})*", digits) else b"damaged"


def count(data: bytes) -> None:
    """Count the bytes that the pixels decompress to. Raises ValueError if the header asks for more."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    bits = depth * CHANNELS.get(colour, 0)
    wanted = sum(_rows(width, height, bits, *steps) for steps in passes)
    size = _inflated(data, wanted)
    if size < wanted:
        raise ValueError(f"the pixel data end early: {size:,} bytes, expected {wanted:,}")


def _rows(width: int, height: int, bits: int, left: int, top: int, right: int, down: int) -> int:
    """Return the bytes of one pass: rows with every `right`-th pixel, each row after a byte for its filter."""
    columns, rows = -(-(width - left) // right), -(-(height - top) // down)
    return rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0


def _inflated(data: bytes, wanted: int) -> int:
    """Count the bytes that the pixels decompress to, up to about `wanted`. Raises ValueError if they are damaged."""
    stream, size = zlib.decompressobj(), 0
    try:
        for block in _compressed(data):
            while block and not stream.eof and size <= wanted:
                size += len(stream.decompress(block, STEP))
                block = stream.unconsumed_tail
    except zlib.error:
        raise ValueError("the pixel data are damaged") from None
    return size


def _compressed(data: bytes) -> Iterator[bytes]:
    """Yield the compressed pixels in blocks."""
    for kind, start, end in chunks(data):
        if kind == b"IDAT":
            for offset in range(start, end, STEP):
                yield data[offset : min(offset + STEP, end)]
