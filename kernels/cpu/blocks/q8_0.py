"""Multiply by Q8_0: 32 weights, codes of 8 bits.  w = d q

Layout: d, 32 codes. A vector takes the codes of two blocks.
"""

from ..functions import inlined, kernel
from ..lanes import from_half, shuffle
from ..simd import i16x32, load
from ..sums import float_scales, pair, words

BYTES = 34
FACTORS = shuffle(*[0] * 8, *[BYTES // 2] * 8)


@inlined
def two(at):
    """Unpack two blocks: words at even places, at odd ones, and a scale for each 4 weights."""
    even, odd = words(pair(at + 2, at + BYTES + 2))
    return even, odd, from_half(FACTORS(load(i16x32, at)))


@inlined
def unpack(at):
    """Unpack 8 blocks into 8 vectors of codes and 4 of scales."""
    a, b, s = two(at)
    c, d, t = two(at + 2 * BYTES)
    e, f, u = two(at + 4 * BYTES)
    g, h, v = two(at + 6 * BYTES)
    return (a, b, c, d, e, f, g, h), (s, t, u, v)


@kernel
def matvec(args, first, end):
    """Multiply rows of the matrix by a few rows of x."""
    float_scales(unpack, None, BYTES, args, first, end)
