"""Multiply by IQ4_XS: 256 weights, 8 scales of 6 bits, codes of 4 bits for 16 values v.  w = d (s - 32) v

Layout: d, 2 bytes of high pairs and 4 bytes of low nibbles of the scales, 8 times 16 bytes of codes (nibbles.py).
Values times scales stay within 4064 < 2^12.
"""

from numba import int16, int32

from ..decode.fields import half
from ..lanes import convert, shift_down, shuffle, vector
from ..simd import i16x8, i32x8, load, splat
from ..sums import whole_scales
from ..traced import Number, Value, traced
from .nibbles import IQ4, values

BYTES = 136
NIBBLES, PAIRS = vector(i32x8, *range(0, 32, 4)), vector(i32x8, *range(0, 16, 2))
SPREAD = [shuffle(*[i] * 16, *[i + 1] * 16) for i in (0, 2, 4, 6)]


def scales(at: Number) -> Value:
    """Unpack 8 scales."""
    pairs, nibbles = splat(i32x8, load(int16, at + 2)), splat(i32x8, load(int32, at + 4))
    return convert(i16x8, (shift_down(nibbles, NIBBLES()) & 15 | (shift_down(pairs, PAIRS()) & 3) << 4) - 32)


def unpack(at: Number) -> tuple[list[Value], Value]:
    """Unpack a block into 8 vectors of values times scales, and d."""
    s, words = scales(at), list[Value]()
    for i, spread in enumerate(SPREAD):
        words += [v * spread(s) for v in values(IQ4(), at + 8 + 32 * i, at + 24 + 32 * i)]
    return words, half(at)


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    whole_scales(unpack, None, BYTES, args, first, end)
