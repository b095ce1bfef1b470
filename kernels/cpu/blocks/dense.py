"""Multiply by float16, bfloat16 and float32 weights: rows of x stay float32.

64 weights of two rows of the matrix are widened once and multiplied by every row of x.
"""

from numba import types

from ..functions import inlined, kernel
from ..lanes import fma, from_bfloat16, from_half
from ..simd import f32x16, i16x16, load, load_some, store
from ..sums import arg, clear, finish_two, scratch


@inlined
def half(at, count):
    """Load up to 16 weights of float16."""
    return from_half(load(i16x16, at) if count >= 16 else load_some(i16x16, count, at))


@inlined
def bfloat(at, count):
    """Load up to 16 weights of bfloat16."""
    return from_bfloat16(load(i16x16, at) if count >= 16 else load_some(i16x16, count, at))


@inlined
def single(at, count):
    """Load up to 16 weights of float32."""
    return load(f32x16, at) if count >= 16 else load_some(f32x16, count, at)


@inlined
def four(weights, size, at, count):
    """Load up to 64 weights."""
    a, b = weights(at, count), weights(at + 16 * size, count - 16)
    return a, b, weights(at + 32 * size, count - 32), weights(at + 48 * size, count - 48)


@inlined
def dense_rows(weights, size, args, first, end):
    """Do rows of a matrix; `weights(address, count)` loads 16, of which `count` are there, of `size` bytes each."""
    blocks, row_bytes, K = arg(args, 0), arg(args, 1), arg(args, 2)
    x, x_bytes, rows = arg(args, 3), arg(args, 4), arg(args, 5)
    acc = scratch()
    for n in range(first, end, 2):
        a, b = blocks + n * row_bytes, blocks + min(n + 1, end - 1) * row_bytes
        clear(acc, rows)
        for k in range(0, K, 64):
            w, v = four(weights, size, a + size * k, K - k), four(weights, size, b + size * k, K - k)
            for t in range(rows):
                at, y, z = x + t * x_bytes + 4 * k, load(f32x16, acc + 128 * t), load(f32x16, acc + 128 * t + 64)
                p = four(single, 4, at, K - k)
                y = fma(w[3], p[3], fma(w[2], p[2], fma(w[1], p[1], fma(w[0], p[0], y))))
                z = fma(v[3], p[3], fma(v[2], p[2], fma(v[1], p[1], fma(v[0], p[0], z))))
                store(y, acc + 128 * t)
                store(z, acc + 128 * t + 64)
        finish_two(args, rows, n, end, acc)


@kernel
def f16(args, first, end):
    """Multiply rows of a float16 matrix by a few rows of x."""
    dense_rows(half, 2, args, first, end)


@kernel
def bf16(args, first, end):
    """Multiply rows of a bfloat16 matrix by a few rows of x."""
    dense_rows(bfloat, 2, args, first, end)


@kernel
def f32(args, first, end):
    """Multiply rows of a float32 matrix by a few rows of x."""
    dense_rows(single, 4, args, first, end)
