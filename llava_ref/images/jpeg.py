"""Take a JPEG apart, and check that it has all its scans, their restarts, and the coded data between these.

libjpeg silently fills missing pixels with grey. The numbers of markers are those of ITU-T T.81, table B.1.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from .container import Parts, limited

MAX_SCANS = 50  # each is a pass over all pixels; encoders write about ten
SCAN_ENDS = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # FF 00 is a byte of data; FF D0 to FF D7 restart a scan
RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
MORE = bytes.fromhex("edf7bcabeebff9ed") * 8  # arbitrary coded data, without FF and backslash


@dataclass(frozen=True, slots=True)
class Frame:
    """The header of a frame."""

    marker: int
    width: int
    height: int
    factors: dict[int, tuple[int, int]]  # sampling factors of each component: horizontal, vertical

    @property
    def progressive(self) -> bool:
        """Say whether coefficients are refined scan by scan."""
        return self.marker in (0xC2, 0xCA)

    @property
    def arithmetic(self) -> bool:
        """Say whether arithmetic coding is used in place of Huffman codes."""
        return self.marker in (0xC9, 0xCA)

    def blocks(self, components: bytes) -> int:
        """Count the blocks of a scan: those of its only component, or the units that interleave several."""
        side = 1 if self.marker == 0xC3 else 8  # lossless pictures are coded pixel by pixel
        wide, high = (max(pair[axis] for pair in self.factors.values()) for axis in (0, 1))
        if len(components) > 1:
            return ceil(self.width / (side * wide)) * ceil(self.height / (side * high))
        across, down = self.factors[components[0]]
        return ceil(ceil(self.width * across / wide) / side) * ceil(ceil(self.height * down / high) / side)


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan: the coefficients it brings, and its restarts."""

    components: bytes
    coefficients: range
    lacks: int  # low bits of these coefficients that a later scan must bring
    restarts: int  # in the file
    wanted: int  # restarts that the header asks for


def split(data: bytes) -> Parts:
    """Keep what the decoder uses. Two application segments are among it: JFIF's and Adobe's, which tell the colours."""
    kept, exif, xmp, scans = [data[:2]], b"", b"", len(data)
    for marker, start, end in limited(header(data), "header segments"):
        body = data[start + 4 : end]
        if marker == 0xDA:
            scans = start
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif += body[6:]
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body.partition(b"\0")[2]
        elif _is_used(marker, body):
            kept.append(data[start:end])
    return Parts(b"".join(kept) + data[scans:], exif, xmp)


def _is_used(marker: int, body: bytes) -> bool:
    """Say whether libjpeg uses a segment. It ignores comments, and application segments except JFIF's and Adobe's."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 14  # libjpeg ignores shorter ones
    if marker == 0xEE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return not 0xE1 <= marker <= 0xEF and marker != 0xFE


def header(data: bytes, offset: int = 2) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments up to the header of the next scan. Other bytes are skipped."""
    offset, marker = data.find(b"\xff", offset), 0
    while 0 <= offset < len(data) - 1 and marker != 0xDA:
        marker, length = data[offset + 1], 0
        if 0xC0 <= marker <= 0xFE and marker != 0xC8 and not 0xD0 <= marker <= 0xD9 and not 0xF0 <= marker <= 0xFD:
            length = max(2, int.from_bytes(data[offset + 2 : offset + 4], "big"))
        if marker not in (0, 0xFF):
            yield marker, offset, offset + 2 + length
        offset = data.find(b"\xff", offset + 1 + (marker != 0xFF) + length)


def missing(data: bytes) -> tuple[str | None, bytes]:
    """Return what is missing as far as the headers tell, and the file with more data after each run of coded data.

    A decoder that has all its data skips the bytes before the next marker; one that lacks some takes them for pixels.
    So the pixels of the two files differ if data are missing, and only then. Raises ValueError for too many scans.
    """
    frame, interval, scans, longer = None, 0, list[Scan](), [data[:2]]
    for marker, start, end, after in _segments(data):
        body, coded = data[start + 4 : end], data[end:after]
        longer += [data[start:end], RESTART.sub(MORE + rb"\g<0>", coded) + MORE if marker == 0xDA else b""]
        if marker == 0xDD:
            interval = int.from_bytes(body[:2], "big")
        elif marker == 0xDA and frame:
            scans.append(_scan(frame, body, coded, interval))
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = _frame(marker, body)
        if len(scans) > MAX_SCANS:
            raise ValueError(f"over {MAX_SCANS} scans")
    return _lacks(frame, scans) if frame else None, b"".join(longer)


def _lacks(frame: Frame, scans: list[Scan]) -> str | None:
    """Return what the headers show to be missing."""
    if any(scan.restarts < scan.wanted for scan in scans):
        return "the coded data end early, between two restarts"
    bits = {(component, k): 1 for component in frame.factors for k in range(64)}
    for scan in scans:
        bits |= {(component, k): scan.lacks for component in scan.components for k in scan.coefficients}
    if any(bits.values()):
        return "scans are missing, and detail or colour with them"
    return "arithmetic coding, in which missing data cannot be detected" if frame.arithmetic else None


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (marker, start, end, end of the coded data that follow a scan's header) up to the end of the picture."""
    offset: int | None = 2
    while offset is not None:
        begin, offset = offset, None
        for marker, start, end in header(data, begin):
            if marker == 0xDA:
                next_marker = SCAN_ENDS.search(data, end)
                offset = next_marker.start() if next_marker else len(data)
            yield marker, start, end, offset or end
            if marker == 0xD9:
                return


def _frame(marker: int, body: bytes) -> Frame:
    """Read the header of a frame."""
    height, width = struct.unpack_from(">HH", body, 1)
    table = [body[offset : offset + 2] for offset in range(6, 6 + 3 * body[5], 3)]
    return Frame(marker, width, height, {identity: (both >> 4, both & 15) for identity, both in table})


def _scan(frame: Frame, body: bytes, coded: bytes, interval: int) -> Scan:
    """Read the header of a scan, and count its restarts in the coded data."""
    components = body[1 : 1 + 2 * body[0] : 2]
    first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
    if not frame.progressive:
        first, last, bits = 0, 63, 0
    restarts = sum(coded.count(bytes([0xFF, 0xD0 + i])) for i in range(8)) if interval else 0
    wanted = ceil(frame.blocks(components) / interval) - 1 if interval else 0
    return Scan(components, range(first, last + 1), bits & 15, restarts, wanted)
