"""Multiply by Q3_K: 256 weights, 16 scales of 6 bits, codes of 3 bits.  w = d (s - 32) (q - 4)

Layout: 32 bytes of third bits, 64 bytes of lower bits (two_bits.py), 12 bytes of scales, d; each bit of the first 32
bytes has 32 weights. These bits are moved to bit 2 of their bytes. Codes are multiplied without their offset: 4 times
the scale is the minimum of 16 weights.
"""

from ..decode.fields import half, whole
from ..decode.q3_k import scales
from ..lanes import convert_unsigned, shift_down, shift_up, vector
from ..simd import i16x16, i16x32
from ..sums import whole_scales
from ..traced import Number, Value, traced
from .two_bits import SPREAD, fields, scaled, twice

BYTES = 110
UP, *DOWN = (vector(i16x32, *[i] * 16, *[j] * 16) for i, j in ((2, 1), (0, 1), (2, 3), (4, 5)))


def unpack(at: Number) -> tuple[list[Value], Value]:
    """Unpack a block into 8 vectors of codes times scales, and d."""
    s, top, words = convert_unsigned(i16x16, scales(at + 96) - 32), twice(at), list[Value]()
    thirds = [shift_up(top, UP()), *(shift_down(top, shifts()) for shifts in DOWN)]
    for q, third, spread in zip(fields(at + 32), thirds, SPREAD, strict=True):
        words += scaled(q & 0x0303 | third & 0x0404, spread(s))
    return words, half(at + 108)


def minima(at: Number) -> Value:
    """Return -4 d (s - 32) for each 16 weights."""
    return (whole(scales(at + 96)) - 32) * (half(at + 108) * -4)


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    whole_scales(unpack, minima, BYTES, args, first, end)
