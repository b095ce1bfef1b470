"""Take a GIF apart."""

import struct
from collections.abc import Iterator

from .container import Parts, limited


def split(data: bytes) -> Parts:
    """Keep the screen, its palette, the first frame and its graphic control."""
    palette, offset = _palette(data, 10, 13)
    kept = [data[:offset]]
    for label, start, end in limited(_extensions(data, offset), "blocks before the first frame"):
        offset = end
        if label == 0xF9 and data[start + 2] >= 4:
            kept.append(data[start:end])
    if data[offset] != 0x2C:
        raise ValueError("holds no frame")
    own, start = _palette(data, offset + 9, offset + 10)
    if not (own or palette):
        raise ValueError("the palette is missing")
    *_, end = limited(_blocks(data, start + 1), "blocks in the first frame")
    file = b"".join(kept) + data[offset:end] + (b";" if end <= len(data) else b"")
    return Parts(file, colours=own or palette, frame=struct.unpack_from("<HH", data, offset + 5))


def _extensions(data: bytes, offset: int) -> Iterator[tuple[int, int, int]]:
    """Yield (label, start, end) of each extension before the first frame, and (0, start, end) of its blocks.

    Bytes between extensions, which Pillow skips, count as blocks."""
    while data[offset] not in b",;":
        start, label = offset, data[offset + 1] if data[offset] == 0x21 else 0
        for offset in _blocks(data, start + 2) if label else [start + 1]:
            yield 0, start, offset
        yield label, start, offset


def _palette(data: bytes, flags: int, start: int) -> tuple[int, int]:
    """Return the number of colours, 0 without a palette, and the offset of the palette's end."""
    colours = 2 << (data[flags] & 7) if data[flags] & 0x80 else 0
    return colours, start + 3 * colours


def _blocks(data: bytes, offset: int) -> Iterator[int]:
    """Yield the end of each block of a chain, of which the last is empty. If the file is cut, that is past its end."""
    while offset < len(data) and data[offset]:
        offset += 1 + data[offset]
        yield offset
    yield offset + 1
