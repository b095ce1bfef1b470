"""Q8_0: d, 32 int8.  w = d q"""

from ..simd import i8x16, load
from .fields import SIGN, half


def block(at, put, out):
    d = half(at)
    put(out, 0, load(i8x16, at + 2) ^ SIGN, 128, d, 0.0)
    put(out, 16, load(i8x16, at + 18) ^ SIGN, 128, d, 0.0)
