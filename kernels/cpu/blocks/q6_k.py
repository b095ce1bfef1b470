"""Multiply by Q6_K: 256 weights, 16 scales of 8 bits, codes of 6 bits.  w = d s (q - 32)

Layout: 128 bytes of the codes' low halves, 64 bytes of their upper pairs of bits, 16 scales, d. Each 64 bytes of halves
have 128 weights, low halves first; 32 bytes of pairs the same 128, lowest pairs first. Codes without sign times a scale
and zero are words of codes times scales; -32 d s is what is to be added for each 16 weights.
"""

from numba import types

from ..dots import pairs8
from ..lanes import bits, convert, half_number, join, shift_down, shift_up, shuffle, vector
from ..simd import f32x16, i8x16, i8x32, i8x64, i16x16, i16x32, i32x16, load
from ..sums import whole_scales
from ..traced import Number, Value, traced

BYTES = 210
SCALES = [shuffle(*[i] * 8, *[i + 1] * 8, *[i + 2] * 8, *[i + 3] * 8) for i in (0, 4, 8, 12)]
UP = vector(i16x32, *[4] * 16, *[2] * 16)
DOWN = vector(i16x32, *[0] * 16, *[2] * 16)


def codes(at: Number) -> list[Value]:
    """Unpack the codes of a block, 0 to 63, 4 vectors of bytes in order."""
    made = []
    for i in range(2):
        low, pairs = bits(i16x32, load(i8x64, at + 64 * i)), load(i8x32, at + 128 + 32 * i)
        high = bits(i16x32, join(pairs, pairs))
        made.append(low & 0x0F0F | shift_up(high, UP()) & 0x3030)
        made.append(shift_down(low, 4) & 0x0F0F | shift_down(high, DOWN()) & 0x3030)
    return [bits(i8x64, words) for words in made]


def unpack(at: Number) -> tuple[list[Value], Value]:
    """Unpack a block into 8 vectors of codes times scales, and d."""
    scales, words = convert(i16x16, load(i8x16, at + 192)), []
    for q, spread in zip(codes(at), SCALES, strict=True):
        s = spread(scales)
        words += [pairs8(q, bits(i8x64, s & 255)), pairs8(q, bits(i8x64, s << 8))]
    return words, half_number(load(types.int16, at + 208))


def minima(at: Number) -> Value:
    """Return -32 d s for each 16 weights."""
    d: Value = half_number(load(types.int16, at + 208))
    scales: Value = convert(f32x16, convert(i32x16, load(i8x16, at + 192)))
    return scales * (d * -32.0)


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    whole_scales(unpack, minima, BYTES, args, first, end, parts=2)
