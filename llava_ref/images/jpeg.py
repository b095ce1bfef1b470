"""Checks that all of a JPEG is in its file: its scans, their restarts, and the coded data of each piece.

libjpeg makes up what is missing, in grey, and tells nobody. Numbers of markers are those of ITU-T T.81, table B.1.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from .parts import jpeg_header

MAX_SCANS = 50  # each is a pass over all pixels; encoders make about ten
SCAN_ENDS = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # FF 00 is a byte of data, FF D0 to FF D7 restart within a scan
RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
MORE = bytes.fromhex("edf7bcabeebff9ed") * 8  # coded data that no encoder wrote: without FF and backslash


@dataclass(frozen=True, slots=True)
class Frame:
    """What the header promises."""

    marker: int
    width: int
    height: int
    factors: dict[int, tuple[int, int]]  # of sampling, of each component: horizontal, vertical

    @property
    def progressive(self) -> bool:
        return self.marker in (0xC2, 0xCA)

    @property
    def arithmetic(self) -> bool:
        return self.marker in (0xC9, 0xCA)

    def blocks(self, components: bytes) -> int:
        """Return the number of blocks in a scan: those of its one component, or those that span several."""
        side = 1 if self.marker == 0xC3 else 8  # lossless pictures are coded pixel by pixel
        wide, high = (max(pair[axis] for pair in self.factors.values()) for axis in (0, 1))
        if len(components) > 1:
            return ceil(self.width / (side * wide)) * ceil(self.height / (side * high))
        across, down = self.factors[components[0]]
        return ceil(ceil(self.width * across / wide) / side) * ceil(ceil(self.height * down / high) / side)


@dataclass(frozen=True, slots=True)
class Scan:
    components: bytes
    coefficients: range
    lacks: int  # low bits of these coefficients, that a later scan brings
    restarts: int
    wanted: int  # restarts


def missing(data: bytes) -> tuple[str | None, bytes]:
    """Return what is missing, as far as the headers tell, and the file with more after each piece of coded data.

    A decoder that had enough data passes over the bytes between their end and the next marker. One that lacks some
    takes these for pixels. So pixels of the two files differ where data are missing, and only there.
    Raises ValueError where there are too many scans.
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
    if any(scan.restarts < scan.wanted for scan in scans):
        return "the coded data end early, between two restarts"
    bits = {(component, k): 1 for component in frame.factors for k in range(64)}
    for scan in scans:
        bits |= {(component, k): scan.lacks for component in scan.components for k in scan.coefficients}
    if any(bits.values()):
        return "scans are missing, and detail or colour with them"
    return "arithmetic coding, of which nobody can tell whether it ends early" if frame.arithmetic else None


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (marker, start, end, end of the coded data that follow a scan's header) up to the end of the picture."""
    at: int | None = 2
    while at is not None:
        begin, at = at, None
        for marker, start, end in jpeg_header(data, begin):
            if marker == 0xDA:
                found = SCAN_ENDS.search(data, end)
                at = found.start() if found else len(data)
            yield marker, start, end, at or end
            if marker == 0xD9:
                return


def _frame(marker: int, body: bytes) -> Frame:
    height, width = struct.unpack_from(">HH", body, 1)
    table = [body[at : at + 2] for at in range(6, 6 + 3 * body[5], 3)]
    return Frame(marker, width, height, {identity: (both >> 4, both & 15) for identity, both in table})


def _scan(frame: Frame, body: bytes, coded: bytes, interval: int) -> Scan:
    components = body[1 : 1 + 2 * body[0] : 2]
    first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
    if not frame.progressive:
        first, last, bits = 0, 63, 0
    restarts = sum(coded.count(bytes([0xFF, 0xD0 + i])) for i in range(8)) if interval else 0
    wanted = ceil(frame.blocks(components) / interval) - 1 if interval else 0
    return Scan(components, range(first, last + 1), bits & 15, restarts, wanted)
