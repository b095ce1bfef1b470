"""Multiply by Q4_K: 256 weights, 8 scales and 8 minima of 6 bits, codes of 4 bits.  w = d s q - m t

Layout: d, m, 12 bytes of scales and minima, 128 bytes of codes; each 32 bytes have 64 weights, low halves first. A
vector takes 32 bytes twice, the low halves of the one and the high halves of the other: 64 weights in order.
"""

from ..big_blocks import BigBlock
from ..decode.fields import half, six_bits, whole
from ..dots import nibbles
from ..lanes import bits, convert_unsigned, lower, shuffle
from ..simd import i8x64, i16x8
from ..traced import Number, Value
from .two_bits import twice

BYTES = 144
MINIMA = shuffle(*(8 + i // 2 for i in range(16)))


def codes(at: Number) -> list[Value]:
    """Unpack the codes of a block."""
    return [nibbles(bits(i8x64, twice(at + 16 + 32 * i))) for i in range(4)]


def scales(at: Number) -> Value:
    """Unpack the scales of a block."""
    return convert_unsigned(i16x8, lower(six_bits(at + 4)))


def factor(at: Number) -> Value:
    """Return d."""
    return half(at)


def minima(at: Number) -> Value:
    """Return -m t for each 16 weights."""
    return whole(MINIMA(six_bits(at + 4))) * -half(at + 2)


BLOCK = BigBlock(BYTES, codes, scales, factor, minima)
