"""IQ4_NL: d, 16 bytes of nibbles as Q4_0, each an index into 16 values.  w = d v"""

from ..dots import look_up
from ..lanes import vector
from ..simd import i8x16, load
from .fields import half, high, low

VALUES = vector(i8x16, 1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241)
"""128 more than the values that are multiplied."""


def block(at, put, out):
    d, q = half(at), load(i8x16, at + 2)
    put(out, 0, look_up(VALUES(), low(q)), 128, d, 0.0)
    put(out, 16, look_up(VALUES(), high(q)), 128, d, 0.0)
