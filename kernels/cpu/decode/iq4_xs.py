"""IQ4_XS: d, 2 bytes of high pairs and 4 bytes of low nibbles of 8 scales, 8 times 16 bytes as IQ4_NL.

w = d (s - 32) v
"""

from numba import float32, int16, int32, int64

from ..dots import look_up
from ..simd import i8x16, load
from .fields import generic, half, high, low
from .iq4_nl import VALUES


@generic
def block(at, put, out):
    d, pairs, nibbles = half(at), int64(load(int16, at + 2)), int64(load(int32, at + 4))
    for j in range(8):
        s = nibbles >> 4 * j & 15 | (pairs >> 2 * j & 3) << 4
        q, f = load(i8x16, at + 8 + 16 * j), d * float32(s - 32)
        put(out, 32 * j, look_up(VALUES(), low(q)), 128, f, 0.0)
        put(out, 32 * j + 16, look_up(VALUES(), high(q)), 128, f, 0.0)
