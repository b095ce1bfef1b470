"""Compute e to the power of 16 numbers."""

from llvmlite import ir

from .lanes import choose, fma, less
from .llvm import I32, constant
from .traced import Number, Value, operation

SHIFT, SHIFT_BITS = 1.5 * 2**23, 0x4B400000
"""Added to a float32 below 2^22, it leaves the nearest whole number in the low bits. Its own bits."""
LOG2_E, LN_2_HIGH, LN_2_LOW = 1.4426950408889634, 0.693359375, -2.1219444005469057e-4
LEAST, MOST = -104.0, 89.0
"""Below and above, the exponential of a float32 is 0 and infinity."""


@operation
def times_power(builder, a, shifted):
    """Return a 2^n, in two steps so that subnormal results are right; `shifted` is n + SHIFT."""
    whole = ir.VectorType(I32, a.type.count)
    n = builder.sub(builder.bitcast(shifted, whole), constant(whole, SHIFT_BITS))
    half = builder.ashr(n, constant(whole, 1))
    for part in half, builder.sub(n, half):
        bits = builder.shl(builder.add(part, constant(whole, 127)), constant(whole, 23))
        a = builder.fmul(a, builder.bitcast(bits, a.type))
    return a


def exp(x: Number) -> Value:
    """Return e^x, to 1e-7 of it: a polynomial within half of ln 2 of 0, which is right to 1.9e-9, times a power of 2.

    e^-inf is 0, e^inf infinity, and e^NaN NaN."""
    x = choose(less(x, LEAST), LEAST, choose(less(MOST, x), MOST, x))
    shifted = x * LOG2_E + SHIFT
    n = shifted - SHIFT
    r = fma(n, -LN_2_LOW, fma(n, -LN_2_HIGH, x))
    y = fma(0.0013836830, r, 0.0083748157)
    y = fma(y, r, 0.041668226)
    y = fma(y, r, 0.16666420)
    y = fma(y, r, 0.49999992)
    y = fma(fma(y, r, 1.0), r, 1.0)
    return times_power(y, shifted)
