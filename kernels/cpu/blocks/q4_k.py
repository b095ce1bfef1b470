"""Multiply by Q4_K: 256 weights, 8 scales and 8 minima of 6 bits, codes of 4 bits.  w = d s q - m t

Layout: d, m, 12 bytes of scales and minima, 128 bytes of codes; each 32 bytes have 64 weights, low halves first. A
vector takes 32 bytes twice, the low halves of the one and the high halves of the other: 64 weights in order.
"""

from ..decode.fields import half, six_bits, whole
from ..dots import nibbles
from ..lanes import bits, convert_unsigned, lower, shuffle
from ..simd import i8x64, i16x8
from ..sums import whole_scales
from ..traced import Number, Value, traced
from .two_bits import scaled, twice

BYTES = 144
SPREAD = [shuffle(*[i] * 16, *[i + 1] * 16) for i in (0, 2, 4, 6)]
MINIMA = shuffle(*(8 + i // 2 for i in range(16)))


def unpack(at: Number) -> tuple[list[Value], Value]:
    """Unpack a block into 8 vectors of codes times scales, below 2^10, and d."""
    scales, words = convert_unsigned(i16x8, lower(six_bits(at + 4))), list[Value]()
    for i, spread in enumerate(SPREAD):
        codes = nibbles(bits(i8x64, twice(at + 16 + 32 * i)))
        words += scaled(codes, spread(scales))
    return words, half(at)


def minima(at: Number) -> Value:
    """Return -m t for each 16 weights."""
    return whole(MINIMA(six_bits(at + 4))) * -half(at + 2)


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    whole_scales(unpack, minima, BYTES, args, first, end)
