"""Take a BMP apart, and check that it has all its pixels."""

import struct
from collections.abc import Iterator

from .container import Parts


def split(data: bytes) -> Parts:
    """Rewrite a picture with a palette so that the palette has 256 colours; keep others as they are.

    Pillow misreads the depth of shorter palettes of greys: 8 bits with black and white are read as 1 bit. Colours that
    the file lacks become black."""
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
    pixels = offset if offset > start else start + entry * used  # some writers leave the palette out of the offset
    colours = min(used, (pixels - start) // entry, 1 << bits)
    table = [data[start + i * entry : start + i * entry + 3].ljust(4, b"\0") for i in range(colours)]
    info = struct.pack("<IIIHHIIIIII", 40, width, height, 1, bits, compression, 0, 0, 0, 256, 0)
    head = b"BM" + struct.pack("<III", 0, 0, 1078) + info
    return Parts(head + b"".join(table).ljust(1024, b"\0") + data[pixels:], colours=colours)


def draws_all(data: bytes) -> bool:
    """Say whether a run-length coded BMP draws all its pixels. Its rows may end early or be skipped."""
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression not in (1, 2):
        return True
    return sum(_runs(data[struct.unpack_from("<I", data, 10)[0] :], width, compression == 2)) >= width * abs(height)


def _runs(code: bytes, width: int, halves: bool) -> Iterator[int]:
    """Yield the number of pixels that each code draws. `halves`: a byte holds two pixels."""
    index = column = 0
    while index + 1 < len(code) and code[index : index + 2] != b"\0\1":
        count, value = code[index], code[index + 1]
        index += 2
        if count or value > 2:
            drawn = min(count or value, max(0, width - column))
            column += drawn
            yield drawn
        if not count and value > 2:  # `value` pixels follow, padded to an even number of bytes
            index += ((value + 1) // 2 if halves else value) + 1 & ~1
        elif not count:
            column = 0 if value == 0 else column + code[index] if index < len(code) else column
            index += value  # 2: moves right and up
