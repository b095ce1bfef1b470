"""Multiply by Q5_1: 32 weights, codes of 5 bits.  w = d q + m

Layout: d, m, 32 fifth bits, 16 bytes of nibbles (nibbles.py).
"""

from ..sums import float_scales
from ..traced import Number, Value, traced
from .eight import TWICE, halves, spread
from .nibbles import codes, nibbles, with_fifths

BYTES = 24
SCALES, MINIMA = halves(BYTES, 8 * BYTES), halves(BYTES, 8 * BYTES - 2)


def unpack(at: Number) -> tuple[list[Value], list[Value]]:
    """Unpack 8 blocks into 8 vectors of codes and 4 of scales."""
    words: list[Value] = []
    for two in (at + 2 * BYTES * i for i in range(4)):
        words += codes(with_fifths(nibbles(two + 8, two + BYTES + 8), two + 4, two + BYTES + 4))
    return words, spread(SCALES(at))


def minima(at: Number) -> Value:
    """Return m for each 16 weights."""
    return TWICE(MINIMA(at + 2))


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    float_scales(unpack, minima, BYTES, args, first, end)
