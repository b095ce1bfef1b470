"""Move fields of two bits, of 256 weights in 64 bytes, to the low end of their bytes: Q2_K and Q3_K.

Each 32 bytes have 128 weights, the lowest fields of all 32 first. A vector takes 32 bytes twice, and shifts each copy
to its field: 64 weights in order. Weights have a scale for 16.
"""

from ..lanes import bits, join, shift_down, vector
from ..simd import i8x32, i16x32, load
from ..traced import Number, Value

FIELDS = [vector(i16x32, *[i] * 16, *[i + 2] * 16) for i in (0, 4)]


def twice(at: Number) -> Value:
    """Load 32 bytes twice."""
    packed = load(i8x32, at)
    return bits(i16x32, join(packed, packed))


def fields(at: Number) -> list[Value]:
    """Return the fields of 256 weights, 64 in a vector, a byte each, between other bits."""
    return [shift_down(half, shifts()) for half in (twice(at), twice(at + 32)) for shifts in FIELDS]
