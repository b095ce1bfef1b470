"""Q5_0: d, 32 fifth bits, 16 bytes of nibbles as Q4_0.  w = d (q - 16)"""

from ..simd import i8x16, i32, load
from .fields import fifth, half, high, low


def block(at, put, out):
    d, fifths, q = half(at), load(i32, at + 2), load(i8x16, at + 6)
    put(out, 0, low(q) | fifth(fifths, 0), 16, d, 0.0)
    put(out, 16, high(q) | fifth(fifths, 16), 16, d, 0.0)
