"""Q2_K: 16 bytes of scale and minimum nibbles, 64 bytes of 2-bit fields, d, m.  w = d s q - m t, s, t for 16 weights

Each 32 bytes hold 128 weights: the lowest fields of all 32 first.
"""

from ..lanes import lane
from ..simd import i8x16, load
from .fields import half, high, low, pair, whole


def block(at, put, out):
    nibbles = load(i8x16, at)
    f, minima = half(at + 80) * whole(low(nibbles)), half(at + 82) * whole(high(nibbles))
    for h in range(4):
        q, first = load(i8x16, at + 16 + 16 * h), 8 * (h // 2) + h % 2
        for j in range(0, 8, 2):
            i = first + j
            put(out, 16 * i, pair(q, j), 0, lane(f, i), lane(minima, i))
