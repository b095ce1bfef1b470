"""Multiply by Q3_K: 256 weights, 16 scales of 6 bits, codes of 3 bits.  w = d (s - 32) (q - 4)

Layout: 32 bytes of third bits, 64 bytes of lower bits (two_bits.py), 12 bytes of scales, d; each bit of the first 32
bytes has 32 weights. These bits are moved to bit 2 of their bytes. Codes are multiplied without their offset: 4 times
the scale is the minimum of 16 weights.
"""

from ..big_blocks import BigBlock
from ..decode.fields import half, whole
from ..decode.q3_k import scales as six_bit_scales
from ..lanes import convert, shift_down, shift_up, vector
from ..simd import i16x16, i16x32
from ..traced import Number, Value
from .two_bits import fields, twice

BYTES = 110
UP, *DOWN = (vector(i16x32, *[i] * 16, *[j] * 16) for i, j in ((2, 1), (0, 1), (2, 3), (4, 5)))


def codes(at: Number) -> list[Value]:
    """Unpack the codes of a block."""
    top = twice(at)
    thirds = [shift_up(top, UP()), *(shift_down(top, shifts()) for shifts in DOWN)]
    return [q & 0x0303 | third & 0x0404 for q, third in zip(fields(at + 32), thirds, strict=True)]


def scales(at: Number) -> Value:
    """Unpack the scales of a block, with their sign."""
    return convert(i16x16, six_bit_scales(at + 96) - 32)


def factor(at: Number) -> Value:
    """Return d."""
    return half(at + 108)


def minima(at: Number) -> Value:
    """Return -4 d (s - 32) for each 16 weights."""
    return (whole(six_bit_scales(at + 96)) - 32) * (half(at + 108) * -4)


BLOCK = BigBlock(BYTES, codes, scales, factor, minima)
