"""Multiply by Q5_0: 32 weights, codes of 5 bits.  w = d (q - 16)

Layout: d, 32 fifth bits, 16 bytes of nibbles (nibbles.py). 16 times the scale is the minimum of a block.
"""

from ..sums import float_scales
from ..traced import Number, Value, traced
from .eight import TWICE, halves, spread
from .nibbles import codes, nibbles, with_fifths

BYTES = 22
SCALES = halves(BYTES, 8 * BYTES)


def unpack(at: Number) -> tuple[list[Value], list[Value]]:
    """Unpack 8 blocks into 8 vectors of codes and 4 of scales."""
    words: list[Value] = []
    for two in (at + 2 * BYTES * i for i in range(4)):
        words += codes(with_fifths(nibbles(two + 6, two + BYTES + 6), two + 2, two + BYTES + 2))
    return words, spread(SCALES(at))


def minima(at: Number) -> Value:
    """Return -16 d for each 16 weights."""
    return TWICE(SCALES(at)) * -16


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    float_scales(unpack, minima, BYTES, args, first, end)
