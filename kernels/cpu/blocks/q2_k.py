"""Multiply by Q2_K: 256 weights, 16 scales and 16 minima of 4 bits, codes of 2 bits.  w = d s q - m t

Layout: 16 bytes with a scale and a minimum each, 64 bytes of codes (two_bits.py), d, m.
"""

from ..decode.fields import half, high, low, whole
from ..lanes import convert_unsigned
from ..simd import i8x16, i16x16, load
from ..sums import whole_scales
from ..traced import Number, Value, traced
from .two_bits import SPREAD, fields, scaled

BYTES = 84


def unpack(at: Number) -> tuple[list[Value], Value]:
    """Unpack a block into 8 vectors of codes times scales, and d."""
    s, words = convert_unsigned(i16x16, low(load(i8x16, at))), list[Value]()
    for q, spread in zip(fields(at + 16), SPREAD, strict=True):
        words += scaled(q & 0x0303, spread(s))
    return words, half(at + 80)


def minima(at: Number) -> Value:
    """Return -m t for each 16 weights."""
    return whole(high(load(i8x16, at))) * -half(at + 82)


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    whole_scales(unpack, minima, BYTES, args, first, end)
