"""Q5_1: d, m, 32 fifth bits, 16 bytes of nibbles as Q4_0.  w = d q + m"""

from ..simd import i8x16, i32, load
from .fields import fifth, half, high, low


def block(at, put, out):
    d, m, fifths, q = half(at), half(at + 2), load(i32, at + 4), load(i8x16, at + 8)
    put(out, 0, low(q) | fifth(fifths, 0), 0, d, -m)
    put(out, 16, high(q) | fifth(fifths, 16), 0, d, -m)
