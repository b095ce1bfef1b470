"""Q4_1: d, m, 16 bytes of nibbles as Q4_0.  w = d q + m"""

from ..simd import i8x16, load
from .fields import half, high, low


def block(at, put, out):
    d, m, q = half(at), half(at + 2), load(i8x16, at + 4)
    put(out, 0, low(q), 0, d, -m)
    put(out, 16, high(q), 0, d, -m)
