"""Unpack nibbles of blocks whose 16 bytes have 16 weights in the low nibbles, and 16 more in the high ones.

64 weights, a byte each and in order, are 16 bytes twice, and 16 others twice; the second copies are shifted. Bytes read
as words are weights at even places below those at odd ones.
"""

from ..dots import look_up
from ..lanes import bits, choose, convert_unsigned, join, shift_down, vector
from ..llvm import Kind
from ..simd import i8x16, i8x64, i16x32, i32, i64, load, splat
from ..traced import Number, Value

i1x64 = Kind("i1", 64)
UP = vector(i16x32, *[0] * 8, *[4] * 8, *[0] * 8, *[4] * 8)
IQ4 = vector(i8x16, -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of IQ4_NL and IQ4_XS."""


def nibbles(low: Number, high: Number) -> Value:
    """Return the nibbles of 16 bytes at one address and 16 at another, as words."""
    a, b = load(i8x16, low), load(i8x16, high)
    return shift_down(bits(i16x32, join(join(a, a), join(b, b))), UP()) & 0x0F0F


def words(codes: Value) -> tuple[Value, Value]:
    """Widen 64 int8 codes to int16: the 32 at even places, and the 32 at odd ones."""
    pairs = bits(i16x32, codes)
    return pairs << 8 >> 8, pairs >> 8


def values(table: Value, low: Number, high: Number) -> tuple[Value, Value]:
    """Look 64 values up, and widen them to int16: those at even places, and those at odd ones."""
    return words(look_up(table, bits(i8x64, nibbles(low, high))))


def with_fifths(q: Value, low: Number, high: Number) -> Value:
    """Put the 32 bits at one address and the 32 at another above 64 nibbles."""
    first, second = (convert_unsigned(i64, load(i32, at)) for at in (low, high))
    return q | bits(i16x32, choose(bits(i1x64, first | second << 32), splat(i8x64, 16), splat(i8x64, 0)))
