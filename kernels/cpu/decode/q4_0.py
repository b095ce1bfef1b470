"""Q4_0: d, 16 bytes: weight j in the low nibble of byte j, weight j + 16 in the high one.  w = d (q - 8)"""

from ..simd import i8x16, load
from .fields import half, high, low


def block(at, put, out):
    d, q = half(at), load(i8x16, at + 2)
    put(out, 0, low(q), 8, d, 0.0)
    put(out, 16, high(q), 8, d, 0.0)
