"""Multiply by MXFP4: 32 weights, codes of 4 bits for 16 values v, the scale a power of 2.  w = 2^(e - 128) 2v

Layout: e, 16 bytes of codes (nibbles.py). The scales of the two lowest e are subnormal.
"""

from ..lanes import bits, choose, convert_unsigned, less, shift_up, vector
from ..simd import f32x8, i8x16, i32x8, splat
from ..sums import float_scales
from ..traced import Number, Value, traced
from .eight import spread, strided
from .nibbles import values

BYTES = 17
SCALES = strided("i8", BYTES, 8 * BYTES)
TWICE_E2M1 = vector(i8x16, 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def scales(at: Number) -> Value:
    """Return 2^(e - 128) of 8 blocks."""
    e = convert_unsigned(i32x8, SCALES(at))
    smallest = shift_up(splat(i32x8, 0x00200000), e & 1)
    return bits(f32x8, choose(less(e, splat(i32x8, 2)), smallest, (e - 1) << 23))


def unpack(at: Number) -> tuple[list[Value], list[Value]]:
    """Unpack 8 blocks into 8 vectors of codes and 4 of scales."""
    words: list[Value] = []
    for two in (at + 2 * BYTES * i for i in range(4)):
        words += values(TWICE_E2M1(), two + 1, two + BYTES + 1)
    return words, spread(scales(at))


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    float_scales(unpack, None, BYTES, args, first, end)
