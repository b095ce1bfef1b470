"""Q6_K: 128 bytes of nibbles, 64 bytes of 2-bit fields, 16 int8 scales, d.  w = d s (q - 32), s for 16 weights

Each 64 bytes of nibbles hold 128 weights, low ones first; each 32 bytes of fields the top of the same 128.
"""

from ..lanes import lane
from ..simd import i8x16, load
from .fields import half, high, low, pair, signed


def block(at, put, out):
    f = half(at + 208) * signed(load(i8x16, at + 192))
    for h in range(4):
        tops, of, first = load(i8x16, at + 128 + 16 * h), h // 2, 8 * (h // 2) + h % 2
        for j in range(2):
            q, i = load(i8x16, at + 64 * of + 32 * j + 16 * (h % 2)), first + 2 * j
            put(out, 16 * i, low(q) | pair(tops, 2 * j) << 4, 32, lane(f, i), 0.0)
            put(out, 16 * i + 64, high(q) | pair(tops, 2 * j + 4) << 4, 32, lane(f, i + 4), 0.0)
