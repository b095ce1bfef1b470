"""Take a WebP apart."""

import struct
from collections.abc import Iterator

from .container import Chunk, Parts, limited


def split(data: bytes) -> Parts:
    """Keep the picture or the first frame of an animation. A file that is cut before their end is kept as it is."""
    kept, metadata = [], dict[bytes, bytes]()
    frame, done, flags = None, False, 0
    for kind, start, end in limited(_chunks(data), "chunks"):
        if (kind == b"EXIF" and flags & 8) or (kind == b"XMP " and flags & 4):
            metadata[kind] = data[start:end]
        if done or kind not in (b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"):
            continue
        if end > min(len(data), 8 + int.from_bytes(data[4:8], "little")):
            return Parts(data)
        body = data[start:end]
        if kind == b"VP8X":
            flags, body = body[0], bytes([body[0] & 0x12]) + body[1:]  # keeps the flags alpha and animation
        elif kind == b"ANMF":
            frame = int.from_bytes(body[6:9], "little") + 1, int.from_bytes(body[9:12], "little") + 1
        kept.append(data[start - 8 : start] + body + bytes(len(body) % 2))
        done = kind in (b"VP8 ", b"VP8L", b"ANMF")
    riff = b"WEBP" + b"".join(kept)
    file = b"RIFF" + struct.pack("<I", len(riff)) + riff
    return Parts(file, metadata.get(b"EXIF", b""), metadata.get(b"XMP ", b""), frame=frame)


def _chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks of the RIFF container, as far as the file goes."""
    offset, end = 12, 8 + int.from_bytes(data[4:8], "little")
    while offset + 8 <= min(end, len(data)):
        size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        yield data[offset : offset + 4], offset + 8, offset + 8 + size
        offset += 8 + size + size % 2
