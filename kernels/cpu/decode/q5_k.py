"""Q5_K: d, m, 12 bytes of scales as Q4_K, 32 bytes of fifth bits, 128 bytes of nibbles as Q4_K.

w = d s q - m t.  Bit j of the 32 bytes is that of the weights 32 j to 32 j + 31.
"""

from ..lanes import lane, shift_down
from ..simd import i8x16, load
from .fields import factors, high, low


def block(at, put, out):
    f = factors(at, at + 4)
    for h in range(2):
        fifths = load(i8x16, at + 16 + 16 * h)
        for j in range(0, 8, 2):
            q, index = load(i8x16, at + 48 + 16 * (j + h)), 16 * (2 * j + h)
            first, second = shift_down(fifths, j) & 1, shift_down(fifths, j + 1) & 1
            put(out, index, low(q) | first << 4, 0, lane(f, j), lane(f, 8 + j))
            put(out, index + 32, high(q) | second << 4, 0, lane(f, j + 1), lane(f, 9 + j))
