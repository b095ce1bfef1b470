"""MXFP4: an 8-bit exponent e, 16 bytes of nibbles as Q4_0, each a 4-bit float v.  w = 2^(e - 128) 2v"""

from ..dots import look_up
from ..lanes import bits, convert_unsigned, vector
from ..simd import f32, i8, i8x16, i32, load
from ..traced import pick
from .fields import high, low

VALUES = vector(i8x16, 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)
"""12 more than twice the values of the floats."""


def scale(at):
    """Make 2^(e - 128), which is subnormal for the two lowest e."""
    e = convert_unsigned(i32, load(i8, at))
    return bits(f32, pick(e < 2, 0x00200000 << e, e - 1 << 23))


def block(at, put, out):
    d, q = scale(at), load(i8x16, at + 1)
    put(out, 0, look_up(VALUES(), low(q)), 12, d, 0.0)
    put(out, 16, look_up(VALUES(), high(q)), 12, d, 0.0)
