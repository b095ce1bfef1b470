"""IQ4_XS: d, 2 bytes of high pairs and 4 bytes of low nibbles of 8 scales, 8 times 16 bytes as IQ4_NL.

w = d (s - 32) v
"""

from ..dots import look_up
from ..lanes import convert
from ..simd import f32, i8x16, i16, i32, load
from .fields import half, high, low
from .iq4_nl import VALUES


def block(at, put, out):
    d, pairs, nibbles = half(at), load(i16, at + 2), load(i32, at + 4)
    for j in range(8):
        s = nibbles >> 4 * j & 15 | (pairs >> 2 * j & 3) << 4
        q, f = load(i8x16, at + 8 + 16 * j), d * convert(f32, s - 32)
        put(out, 32 * j, look_up(VALUES(), low(q)), 128, f, 0.0)
        put(out, 32 * j + 16, look_up(VALUES(), high(q)), 128, f, 0.0)
