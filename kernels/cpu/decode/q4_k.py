"""Q4_K: d, m, 12 bytes of scales, 128 bytes of nibbles.  w = d s q - m t, s and t for 32 weights

Each 32 bytes hold 64 weights: the low nibbles of all 32 first.
"""

from ..lanes import lane
from ..simd import i8x16, load
from .fields import factors, high, low


def block(at, put, out):
    f = factors(at, at + 4)
    for j in range(8):
        q, i = load(i8x16, at + 16 + 16 * j), j // 2 * 2
        put(out, 16 * (j + i), low(q), 0, lane(f, i), lane(f, 8 + i))
        put(out, 16 * (j + i) + 32, high(q), 0, lane(f, i + 1), lane(f, 9 + i))
