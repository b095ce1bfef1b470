"""Multiply by IQ4_XS: 256 weights, 8 scales of 6 bits, codes of 4 bits for 16 values v.  w = d (s - 32) v

Layout: d, 2 bytes of high pairs and 4 bytes of low nibbles of the scales, 8 times 16 bytes of codes (nibbles.py).
Values times scales stay within 4064 < 2^12.
"""

from ..big_blocks import BigBlock
from ..decode.fields import half
from ..lanes import convert, shift_down, vector
from ..simd import i16, i16x8, i32, i32x8, load, splat
from ..traced import Number, Value
from .nibbles import IQ4, values

BYTES = 136
NIBBLES, PAIRS = vector(i32x8, *range(0, 32, 4)), vector(i32x8, *range(0, 16, 2))


def scales(at: Number) -> Value:
    """Unpack 8 scales."""
    pairs, nibbles = splat(i32x8, load(i16, at + 2)), splat(i32x8, load(i32, at + 4))
    return convert(i16x8, (shift_down(nibbles, NIBBLES()) & 15 | (shift_down(pairs, PAIRS()) & 3) << 4) - 32)


def codes(at: Number) -> list[tuple[Value, Value]]:
    """Look up the values of a block."""
    return [values(IQ4(), at + 8 + 32 * i, at + 24 + 32 * i) for i in range(4)]


def factor(at: Number) -> Value:
    """Return d."""
    return half(at)


BLOCK = BigBlock(BYTES, codes, scales, factor)
