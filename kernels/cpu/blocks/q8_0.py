"""Multiply by Q8_0: 32 weights, codes of 8 bits.  w = d q

Layout: d, 32 codes. A vector takes the codes of two blocks.
"""

from ..lanes import from_half, shuffle
from ..simd import i16x32, load
from ..sums import float_scales, pair, words
from ..traced import Number, Value, traced

BYTES = 34
FACTORS = shuffle(*[0] * 8, *[BYTES // 2] * 8)


def unpack(at: Number) -> tuple[list[Value], list[Value]]:
    """Unpack 8 blocks into 8 vectors of codes and 4 of scales."""
    codes: list[Value] = []
    scales: list[Value] = []
    for two in (at + 2 * BYTES * i for i in range(4)):
        codes += words(pair(two + 2, two + BYTES + 2))
        scales.append(from_half(FACTORS(load(i16x32, two))))
    return codes, scales


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    float_scales(unpack, None, BYTES, args, first, end)
