"""Multiply by IQ4_NL: 32 weights, codes of 4 bits for 16 values v.  w = d v

Layout: d, 16 bytes of codes (nibbles.py).
"""

from ..sums import float_scales
from ..traced import Number, Value, traced
from .eight import halves, spread
from .nibbles import IQ4, values

BYTES = 18
SCALES = halves(BYTES, 8 * BYTES)


def unpack(at: Number) -> tuple[list[Value], list[Value]]:
    """Unpack 8 blocks into 8 vectors of codes and 4 of scales."""
    words: list[Value] = []
    for two in (at + 2 * BYTES * i for i in range(4)):
        words += values(IQ4(), two + 2, two + BYTES + 2)
    return words, spread(SCALES(at))


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    float_scales(unpack, None, BYTES, args, first, end)
