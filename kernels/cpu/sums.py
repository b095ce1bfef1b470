"""Multiply rows of a matrix by rows of x: the loop that every quantised type shares.

A group is 256 weights. Its codes are 8 vectors of int16, evens and odds of each 64 weights, as the codes of x lie
(activations.py). Weights of two rows of the matrix are unpacked once and multiplied by every row of x, so reading x is
shared by two rows, and unpacking by all rows of x. A row of the result is the same bits however many there are.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .activations import CODES, GROUP, SUMS
from .dots import dot16
from .functions import inlined
from .lanes import convert, fma, total
from .simd import ELEMENTS, I64, f32x16, i16x32, i32x16, load, operation, splat, store

FEW = 8
"""Rows of x that a launch may have."""
ARGS = (
    "blocks", "bytes of a row", "K", "x", "bytes of a row of x", "rows of x", "out", "N", "bias", "add"
)  # fmt: skip


@operation(lambda: types.int64)
def scratch(builder):
    """Return the address of 64-byte vectors on the stack, two for each row of x."""
    room = cgutils.alloca_once(builder, ir.ArrayType(ir.VectorType(ELEMENTS["f32"], 16), 2 * FEW))
    return builder.ptrtoint(room, I64)


@inlined
def arg(args, i):
    """Return argument i, an int64."""
    return load(types.int64, args + 8 * i)


@inlined
def finish(args, t, n, y):
    """Store element n of row t of the result, after the bias and what is to be added."""
    N, bias, add = arg(args, 7), arg(args, 8), arg(args, 9)
    if bias != 0:
        y += load(types.float32, bias + 4 * n)
    if add != 0:
        y += load(types.float32, add + 4 * (t * N + n))
    store(y, arg(args, 6) + 4 * (t * N + n))


@inlined
def dot_group(w, x):
    """Multiply the codes of a group by those of x at an address, and add up, in 16 lanes of int32."""
    acc = dot16(splat(i32x16, 0), w[0], load(i16x32, x))
    acc = dot16(acc, w[1], load(i16x32, x + 64))
    acc = dot16(acc, w[2], load(i16x32, x + 128))
    acc = dot16(acc, w[3], load(i16x32, x + 192))
    acc = dot16(acc, w[4], load(i16x32, x + 256))
    acc = dot16(acc, w[5], load(i16x32, x + 320))
    acc = dot16(acc, w[6], load(i16x32, x + 384))
    return dot16(acc, w[7], load(i16x32, x + 448))


@inlined
def scaled_rows(unpack, minima, block_bytes, args, first, end):
    """Do rows of a matrix whose blocks are groups: one float is a factor of all codes, which have whole scales.

    `unpack(address)` gives the words, times their scales, and the factor; `minima(address)` what is to be added for
    each 16 weights, a multiple of the sum of x; it may be None."""
    blocks, row_bytes, groups = arg(args, 0), arg(args, 1), (arg(args, 2) + GROUP - 1) // GROUP
    x, x_bytes, rows = arg(args, 3), arg(args, 4), arg(args, 5)
    acc = scratch()
    for n in range(first, end, 2):
        a, b = blocks + n * row_bytes, blocks + min(n + 1, end - 1) * row_bytes
        for t in range(2 * rows):
            store(splat(f32x16, 0.0), acc + 64 * t)
        for g in range(groups):
            w, d = unpack(a)
            v, e = unpack(b)
            codes, sums, scales = x + g * CODES, x + groups * CODES + g * SUMS, x + groups * (CODES + SUMS) + 4 * g
            for t in range(rows):
                at = t * x_bytes
                s = load(types.float32, scales + at)
                y, z = load(f32x16, acc + 128 * t), load(f32x16, acc + 128 * t + 64)
                y = fma(convert(f32x16, dot_group(w, codes + at)), splat(f32x16, d * s), y)
                z = fma(convert(f32x16, dot_group(v, codes + at)), splat(f32x16, e * s), z)
                if minima is not None:
                    y = fma(minima(a), load(f32x16, sums + at), y)
                    z = fma(minima(b), load(f32x16, sums + at), z)
                store(y, acc + 128 * t)
                store(z, acc + 128 * t + 64)
            a += block_bytes
            b += block_bytes
        for t in range(rows):
            finish(args, t, n, total(load(f32x16, acc + 128 * t)))
            if n + 1 < end:
                finish(args, t, n + 1, total(load(f32x16, acc + 128 * t + 64)))
