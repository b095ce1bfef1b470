"""Read the fields of blocks: float16 scales, nibbles, the packed scales of the K types.   d, m float16; s, t codes."""

from ..lanes import bits, choose, convert, convert_unsigned, half_number, join, shift_down, shuffle, vector
from ..llvm import Kind
from ..simd import f32x8, f32x16, i8x16, i16, i32x4, load, splat

SIGN = -128
"""Turned round in a byte with sign, it leaves one without, 128 larger."""
i1x16 = Kind("i1", 16)
A_BOTH_C_BOTH, A_A_C_C = shuffle(0, 2, 1, 2), shuffle(0, 0, 1, 1)
DOWN, MASK = vector(i32x4, 0, 0, 0, 4), vector(i32x4, 0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F)
TOP = vector(i32x4, 0, 0x30303030, 0, 0x30303030)


def half(at):
    """Read a float16, as float32."""
    return half_number(load(i16, at))


def low(q):
    """Return the low nibbles of bytes."""
    return q & 15


def high(q):
    """Return the high nibbles of bytes."""
    return shift_down(q, 4)


def pair(q, shift):
    """Return fields of two bits of bytes, those from bit `shift` on."""
    return shift_down(q, shift) & 3


def fifth(word, first):
    """Return 16 of 32 bits, those from bit `first` on, as bytes of 0 or 16."""
    return choose(bits(i1x16, convert(i16, word >> first)), splat(i8x16, 16), splat(i8x16, 0))


def whole(q):
    """Convert 16 bytes without sign to float32."""
    return convert_unsigned(f32x16, q)


def signed(q):
    """Convert 16 bytes with sign to float32."""
    return convert(f32x16, q)


def six_bits(at):
    """Unpack 8 scales and 8 minima of 6 bits from 12 bytes: words a, c, both.  -> (16) bytes, scales first

    The first four of each are the low 6 bits of a and c; of the other four the low nibbles are in `both`, those of the
    minima in its high nibbles, and the high pairs in the top of a and c."""
    words = load(i32x4, at)
    lower = shift_down(A_BOTH_C_BOTH(words), DOWN()) & MASK()
    return bits(i8x16, lower | shift_down(A_A_C_C(words), 2) & TOP())


def factors(at, scales):
    """Unpack 8 scales and 8 minima, and multiply by d and m, which are at `at`.  -> (16) float32, scales first"""
    return join(splat(f32x8, half(at)), splat(f32x8, half(at + 2))) * whole(six_bits(scales))
