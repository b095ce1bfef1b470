"""Multiply by Q2_K: 256 weights, 16 scales and 16 minima of 4 bits, codes of 2 bits.  w = d s q - m t

Layout: 16 bytes with a scale and a minimum each, 64 bytes of codes (two_bits.py), d, m.
"""

from ..big_blocks import BigBlock
from ..decode.fields import half, high, low, whole
from ..lanes import convert_unsigned
from ..simd import i8x16, i16x16, load
from ..traced import Number, Value
from .two_bits import fields

BYTES = 84


def codes(at: Number) -> list[Value]:
    """Unpack the codes of a block."""
    return [q & 0x0303 for q in fields(at + 16)]


def scales(at: Number) -> Value:
    """Unpack the scales of a block."""
    return convert_unsigned(i16x16, low(load(i8x16, at)))


def factor(at: Number) -> Value:
    """Return d."""
    return half(at + 80)


def minima(at: Number) -> Value:
    """Return -m t for each 16 weights."""
    return whole(high(load(i8x16, at))) * -half(at + 82)


BLOCK = BigBlock(BYTES, codes, scales, factor, minima)
