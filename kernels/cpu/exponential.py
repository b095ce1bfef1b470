"""Compute e to the power of 16 numbers."""

import numpy as np
from llvmlite import ir

from .functions import inlined
from .lanes import choose, fma, less
from .simd import I32, constant, f32x16, operation, splat

F = np.float32
SHIFT, SHIFT_BITS = 1.5 * 2**23, 0x4B400000
"""Added to a float32 below 2^22, it leaves the nearest whole number in the low bits. Its own bits."""
LOG2_E, LN_2_HIGH, LN_2_LOW = F(1.4426950408889634), F(0.693359375), F(-2.1219444005469057e-4)
LEAST, MOST = F(-104), F(89)
"""Below and above, the exponential of a float32 is 0 and infinity."""


@operation(lambda a, shifted: f32x16)
def times_power(builder, a, shifted):
    """Return a 2^n, in two steps so that subnormal results are right; `shifted` is n + SHIFT."""
    whole = ir.VectorType(I32, a.type.count)
    n = builder.sub(builder.bitcast(shifted, whole), constant(whole, SHIFT_BITS))
    half = builder.ashr(n, constant(whole, 1))
    for part in half, builder.sub(n, half):
        bits = builder.shl(builder.add(part, constant(whole, 127)), constant(whole, 23))
        a = builder.fmul(a, builder.bitcast(bits, a.type))
    return a


@inlined
def exp(x):
    """Return e^x, to 1e-7 of it: a polynomial within half of ln 2 of 0, which is right to 1.9e-9, times a power of 2.

    e^-inf is 0, e^inf infinity, and e^NaN NaN."""
    least, most = splat(f32x16, LEAST), splat(f32x16, MOST)
    x = choose(less(x, least), least, choose(less(most, x), most, x))
    shifted = x * splat(f32x16, LOG2_E) + splat(f32x16, F(SHIFT))
    n = shifted - splat(f32x16, F(SHIFT))
    r = fma(n, splat(f32x16, -LN_2_LOW), fma(n, splat(f32x16, -LN_2_HIGH), x))
    y = fma(splat(f32x16, F(0.0013836830)), r, splat(f32x16, F(0.0083748157)))
    y = fma(y, r, splat(f32x16, F(0.041668226)))
    y = fma(y, r, splat(f32x16, F(0.16666420)))
    y = fma(y, r, splat(f32x16, F(0.49999992)))
    y = fma(fma(y, r, splat(f32x16, F(1))), r, splat(f32x16, F(1)))
    return times_power(y, shifted)
