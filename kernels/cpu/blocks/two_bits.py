"""Move fields of two bits, of 256 weights in 64 bytes, to the low end of their bytes: Q2_K and Q3_K.

Each 32 bytes have 128 weights, the lowest fields of all 32 first. A vector takes 32 bytes twice, and shifts each copy
to its field: 64 weights in order. Weights have a scale for 16.
"""

from ..dots import pairs8
from ..lanes import bits, join, shift_down, shuffle, vector
from ..simd import i8x32, i8x64, i16x32, load
from ..traced import Number, Value

FIELDS = [vector(i16x32, *[i] * 16, *[i + 2] * 16) for i in (0, 4)]
SPREAD = [shuffle(*(i + j // 8 for j in range(32))) for i in (0, 4, 8, 12)]
"""Spread four scales over 64 weights, even and odd ones."""


def twice(at: Number) -> Value:
    """Load 32 bytes twice."""
    packed = load(i8x32, at)
    return bits(i16x32, join(packed, packed))


def fields(at: Number) -> list[Value]:
    """Return the fields of 256 weights, 64 in a vector, a byte each, between other bits."""
    return [shift_down(half, shifts()) for half in (twice(at), twice(at + 32)) for shifts in FIELDS]


def scaled(codes: Value, scales: Value) -> tuple[Value, Value]:
    """Multiply 64 codes by their scales, of 8 bits in int16 with zeros above: the even products and the odd ones."""
    q = bits(i8x64, codes)
    return pairs8(q, bits(i8x64, scales)), pairs8(q, bits(i8x64, scales << 8))
