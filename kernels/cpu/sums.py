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
from .lanes import bits, convert, fma, join, total
from .simd import ELEMENTS, I64, f32x16, i8x32, i8x64, i16x32, i32x16, load, operation, splat, store

FEW = 8
"""Rows of x that a launch may have."""
ROOM = 320
"""Bytes for 8 blocks of 32 weights, a multiple of 64."""
ARGS = (
    "blocks", "bytes of a row", "K", "x", "bytes of a row of x", "rows of x", "out", "N", "bias", "add"
)  # fmt: skip


@operation(lambda: types.int64)
def scratch(builder):
    """Return the address of room on the stack: two vectors for each row of x, and two times 8 blocks."""
    count = 2 * FEW + 2 * ROOM // 64
    room = cgutils.alloca_once(builder, ir.ArrayType(ir.VectorType(ELEMENTS["f32"], 16), count))
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
def clear(acc, rows):
    """Set the sums of two rows of the matrix to zero."""
    for t in range(2 * rows):
        store(splat(f32x16, 0.0), acc + 64 * t)


@inlined
def finish_two(args, rows, n, end, acc):
    """Add up the lanes of row n, and of row n + 1 if it is there."""
    for t in range(rows):
        finish(args, t, n, total(load(f32x16, acc + 128 * t)))
        if n + 1 < end:
            finish(args, t, n + 1, total(load(f32x16, acc + 128 * t + 64)))


@inlined
def filled_up(blocks, count, room):
    """Copy the bytes of a row's last blocks to a place where zeros follow them, and return its address."""
    for i in range(0, ROOM, 64):
        store(splat(i8x64, 0), room + i)
    for i in range(count):
        store(load(types.int8, blocks + i), room + i)
    return room


@inlined
def words(codes):
    """Widen 64 int8 codes to int16: the 32 at even places, and the 32 at odd ones."""
    pairs = bits(i16x32, codes)
    return pairs << 8 >> 8, pairs >> 8


@inlined
def pair(low, high):
    """Put the bytes of two blocks in one vector."""
    return join(load(i8x32, low), load(i8x32, high))


@inlined
def dot64(acc, even, odd, x):
    """Add products of 64 codes with those of x at an address, in 16 lanes of int32, one for each 4 codes."""
    return dot16(dot16(acc, even, load(i16x32, x)), odd, load(i16x32, x + 64))


@inlined
def dot256(w, x):
    """Add products of a group's codes with those of x at an address."""
    acc = dot64(splat(i32x16, 0), w[0], w[1], x)
    acc = dot64(acc, w[2], w[3], x + 128)
    acc = dot64(acc, w[4], w[5], x + 256)
    return dot64(acc, w[6], w[7], x + 384)


@inlined
def scaled256(w, d, x):
    """Add products of a group's codes with those of x, times one float32 scale in d for each 4 weights."""
    zero = splat(i32x16, 0)
    acc = convert(f32x16, dot64(zero, w[0], w[1], x)) * d[0]
    acc = fma(convert(f32x16, dot64(zero, w[2], w[3], x + 128)), d[1], acc)
    acc = fma(convert(f32x16, dot64(zero, w[4], w[5], x + 256)), d[2], acc)
    return fma(convert(f32x16, dot64(zero, w[6], w[7], x + 384)), d[3], acc)


@inlined
def whole_scales(unpack, minima, block_bytes, args, first, end):
    """Do rows of a matrix whose blocks are groups: codes have whole scales, and a block has one float32 factor.

    `unpack(address)` gives the words, times their scales, and the factor; `minima(address)` what is to be added for
    each 16 weights, a multiple of the sum of x; it may be None."""
    blocks, row_bytes, groups = arg(args, 0), arg(args, 1), arg(args, 2) // GROUP
    x, x_bytes, rows = arg(args, 3), arg(args, 4), arg(args, 5)
    acc = scratch()
    for n in range(first, end, 2):
        a, b = blocks + n * row_bytes, blocks + min(n + 1, end - 1) * row_bytes
        clear(acc, rows)
        for g in range(groups):
            w, d = unpack(a)
            v, e = unpack(b)
            codes, sums, scales = x + g * CODES, x + groups * CODES + g * SUMS, x + groups * (CODES + SUMS) + 4 * g
            for t in range(rows):
                at = t * x_bytes
                s = load(types.float32, scales + at)
                y, z = load(f32x16, acc + 128 * t), load(f32x16, acc + 128 * t + 64)
                y = fma(convert(f32x16, dot256(w, codes + at)), splat(f32x16, d * s), y)
                z = fma(convert(f32x16, dot256(v, codes + at)), splat(f32x16, e * s), z)
                if minima is not None:
                    y = fma(minima(a), load(f32x16, sums + at), y)
                    z = fma(minima(b), load(f32x16, sums + at), z)
                store(y, acc + 128 * t)
                store(z, acc + 128 * t + 64)
            a += block_bytes
            b += block_bytes
        finish_two(args, rows, n, end, acc)


@inlined
def float_scales(unpack, minima, block_bytes, args, first, end):
    """Do rows of a matrix with a block for 32 weights, 8 blocks at a time, the last ones filled up with zeros.

    `unpack(address)` gives the words of 8 blocks and their scales, 4 vectors, a scale for each 4 weights; `minima` as
    above."""
    blocks, row_bytes, K = arg(args, 0), arg(args, 1), arg(args, 2)
    x, x_bytes, rows = arg(args, 3), arg(args, 4), arg(args, 5)
    acc, whole, groups = scratch(), K // GROUP, (K + GROUP - 1) // GROUP
    for n in range(first, end, 2):
        a, b = blocks + n * row_bytes, blocks + min(n + 1, end - 1) * row_bytes
        clear(acc, rows)
        for g in range(groups):
            if g == whole:
                a = filled_up(a, row_bytes - g * 8 * block_bytes, acc + 128 * FEW)
                b = filled_up(b, row_bytes - g * 8 * block_bytes, acc + 128 * FEW + ROOM)
            w, d = unpack(a)
            v, e = unpack(b)
            codes, sums, scales = x + g * CODES, x + groups * CODES + g * SUMS, x + groups * (CODES + SUMS) + 4 * g
            for t in range(rows):
                at = t * x_bytes
                s = splat(f32x16, load(types.float32, scales + at))
                y = fma(scaled256(w, d, codes + at), s, load(f32x16, acc + 128 * t))
                z = fma(scaled256(v, e, codes + at), s, load(f32x16, acc + 128 * t + 64))
                if minima is not None:
                    y = fma(minima(a), load(f32x16, sums + at), y)
                    z = fma(minima(b), load(f32x16, sums + at), z)
                store(y, acc + 128 * t)
                store(z, acc + 128 * t + 64)
            a += 8 * block_bytes
            b += 8 * block_bytes
        finish_two(args, rows, n, end, acc)
