"""MXFP4: an 8-bit exponent e, 16 bytes of nibbles as Q4_0, each a 4-bit float v.  w = 2^(e - 128) 2v"""

from numba import int8, int64

from ..dots import look_up
from ..functions import inlined
from ..lanes import bits, lane, vector
from ..simd import f32x4, i8x16, i32x4, load, splat
from .fields import generic, high, low

VALUES = vector(i8x16, 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)
"""12 more than twice the values of the floats."""


@inlined
def scale(at):
    """Make 2^(e - 128), which is subnormal for the two lowest e."""
    e = int64(load(int8, at)) & 255
    return lane(bits(f32x4, splat(i32x4, 0x00200000 << e if e < 2 else e - 1 << 23)), 0)


@generic
def block(at, put, out):
    d, q = scale(at), load(i8x16, at + 1)
    put(out, 0, look_up(VALUES(), low(q)), 12, d, 0.0)
    put(out, 16, look_up(VALUES(), high(q)), 12, d, 0.0)
