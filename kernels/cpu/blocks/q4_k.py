"""Multiply by Q4_K: 256 weights, 8 scales and 8 minima of 6 bits, codes of 4 bits.  w = d s q - m t

Layout: d, m, 12 bytes of scales and minima, 128 bytes of codes; each 32 bytes have 64 weights, low halves first. A
vector takes 32 bytes twice. A code is left where it is in the upper byte of a word, the lower byte's moved there, and
the scale is moved so that the upper half of their product is code times scale, below 2^10.
"""

from numba import types

from ..dots import upper_product
from ..lanes import bits, convert, convert_unsigned, from_half, join, lane, shift_up, shuffle, vector
from ..simd import Vec, f32x16, i8x32, i16x8, i16x32, i32x16, load, splat
from ..sums import whole_scales
from ..traced import Number, Value, traced

BYTES = 144
i8x8, i64x1, i16x2 = Vec("i8", 8), Vec("i64", 1), Vec("i16", 2)
CODES = vector(i16x32, *[0x0F00] * 16, *[-0x1000] * 16)
SHIFTS = vector(i16x8, *[8, 4] * 4)
SCALES = [shuffle(*[i] * 16, *[i + 1] * 16) for i in (0, 2, 4, 6)]
TWICE = shuffle(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)


def word(at: Number) -> Value:
    """Load 4 bytes as an int64."""
    made: Value = convert_unsigned(types.int64, load(types.int32, at))
    return made


def six_bits(low: Value, high: Value) -> Value:
    """Put together 8 numbers of 6 bits: four in the low bits of `low`, which has two of the others on top."""
    low, high = low & 0x3F3F3F3F, high & 0x0F0F0F0F | low >> 2 & 0x30303030
    return bits(i8x8, splat(i64x1, low | high << 32))


def unpack(at: Number) -> tuple[list[Value], Value]:
    """Unpack a block into 8 vectors of codes times scales, and d."""
    scales = six_bits(word(at + 4), word(at + 12))
    scales = shift_up(convert_unsigned(i16x8, scales), SHIFTS())
    words = []
    for i, spread in enumerate(SCALES):
        packed = load(i8x32, at + 16 + 32 * i)
        codes, s = bits(i16x32, join(packed, packed)), spread(scales)
        words += [upper_product(codes << 8 & CODES(), s), upper_product(codes & CODES(), s)]
    return words, lane(from_half(load(i16x2, at)), 0)


def minima(at: Number) -> Value:
    """Return -m t for each 16 weights."""
    t = TWICE(six_bits(word(at + 8), word(at + 12) >> 4))
    return convert(f32x16, convert_unsigned(i32x16, t)) * -lane(from_half(load(i16x2, at)), 1)


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    whole_scales(unpack, minima, BYTES, args, first, end)
