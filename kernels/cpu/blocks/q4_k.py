"""Multiply by Q4_K: 256 weights, 8 scales and 8 minima of 6 bits, codes of 4 bits.  w = d s q - m t

Layout: d, m, 12 bytes of scales and minima, 128 bytes of codes; each 32 bytes have 64 weights, low halves first. A
vector takes 32 bytes twice, and shifts the second copy: 64 weights in order. Codes times scales stay below 2^10.
"""

from numba import types

from ..functions import inlined, kernel
from ..lanes import bits, convert, convert_unsigned, half_number, join, shift_down, shuffle, vector
from ..simd import Vec, f32x16, i8x32, i16x8, i16x32, i32x16, load, splat
from ..sums import whole_scales

BYTES = 144
i8x8, i64x1 = Vec("i8", 8), Vec("i64", 1)
NIBBLES = vector(i16x32, *[0] * 16, *[4] * 16)
FIRST, SECOND, THIRD, LAST = (shuffle(*[i] * 16, *[i + 1] * 16) for i in (0, 2, 4, 6))
TWICE = shuffle(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)


@inlined
def six_bits(low, high, top):
    """Put together 8 numbers of 6 bits: four in the low bits of `low`, four of which the high bits are in `top`."""
    low, high = low & 0x3F3F3F3F, high & 0x0F0F0F0F | top >> 2 & 0x30303030
    return bits(i8x8, splat(i64x1, types.int64(low) | types.int64(high) << 32))


@inlined
def codes(at, scales):
    """Unpack 64 codes as 32 even and 32 odd ones, times their scales."""
    packed = load(i8x32, at)
    q = shift_down(bits(i16x32, join(packed, packed)), NIBBLES())
    return (q & 15) * scales, (shift_down(q, 8) & 15) * scales


@inlined
def unpack(at):
    """Unpack a block into 8 vectors of codes times scales, and d."""
    low, both = load(types.uint32, at + 4), load(types.uint32, at + 12)
    s = convert_unsigned(i16x8, six_bits(low, both, low))
    a, b = codes(at + 16, FIRST(s))
    c, d = codes(at + 48, SECOND(s))
    e, f = codes(at + 80, THIRD(s))
    g, h = codes(at + 112, LAST(s))
    return (a, b, c, d, e, f, g, h), half_number(load(types.int16, at))


@inlined
def minima(at):
    """Return -m t for each 16 weights."""
    mid, both = load(types.uint32, at + 8), load(types.uint32, at + 12)
    t = convert(f32x16, convert_unsigned(i32x16, TWICE(six_bits(mid, both >> 4, mid))))
    return t * -half_number(load(types.int16, at + 2))


@kernel
def matvec(args, first, end):
    """Multiply rows of the matrix by a few rows of x."""
    whole_scales(unpack, minima, BYTES, args, first, end)
