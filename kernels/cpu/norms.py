"""Normalise rows, and add them.

A row is one item: it is read twice or three times, but from memory only once. Each sum is in four times 16 lanes, then
number by number, whatever the width and whoever else is computed.
"""

from math import sqrt

import numpy as np
from numba import float32

from .functions import inlined, kernel
from .lanes import fma, total
from .launch import Launch, arguments
from .simd import f32x16, load, splat, store
from .words import real, words

F = np.float32
BLOCK = 4096  # numbers of an item of `add`
WORTH = 8192  # numbers that are worth a thread
FOUR, FIVE, SIX = words(4), words(5), words(6)


@inlined
def _sum(row, width):
    """Return the sum of a row."""
    a = b = c = d = splat(f32x16, F(0))
    end, last = row + 4 * (width - width % 64), row + 4 * width
    for at in range(row, end, 256):
        a, b = a + load(f32x16, at), b + load(f32x16, at + 64)
        c, d = c + load(f32x16, at + 128), d + load(f32x16, at + 192)
    found = total((a + b) + (c + d))
    for at in range(end, last, 4):
        found += load(float32, at)
    return found


@inlined
def _sum_of_squares(row, width, mean):
    """Return the sum of the squares of x - mean over a row."""
    a = b = c = d = splat(f32x16, F(0))
    middle, end, last = splat(f32x16, mean), row + 4 * (width - width % 64), row + 4 * width
    for at in range(row, end, 256):
        e, f = load(f32x16, at) - middle, load(f32x16, at + 64) - middle
        g, h = load(f32x16, at + 128) - middle, load(f32x16, at + 192) - middle
        a, b, c, d = fma(e, e, a), fma(f, f, b), fma(g, g, c), fma(h, h, d)
    found = total((a + b) + (c + d))
    for at in range(end, last, 4):
        away = load(float32, at) - mean
        found += away * away
    return found


@inlined
def _inverse_root(squares, width, eps):
    """Return 1 / sqrt(squares / width + eps)."""
    return F(1) / sqrt(squares / F(width) + eps)


@kernel
def normed(args, first, end):
    """Divide rows by the root of their mean square, and multiply by the gain."""
    x, gain, out, width, eps = FIVE(args)
    for row in range(4 * width * first, 4 * width * end, 4 * width):
        scale = _inverse_root(_sum_of_squares(x + row, width, F(0)), width, real(eps))
        whole = 4 * (width - width % 16)
        for i in range(0, whole, 64):
            store(load(f32x16, x + row + i) * splat(f32x16, scale) * load(f32x16, gain + i), out + row + i)
        for i in range(whole, 4 * width, 4):
            store(load(float32, x + row + i) * scale * load(float32, gain + i), out + row + i)


@kernel
def centred(args, first, end):
    """Move rows to mean 0 and mean square 1, multiply by the gain, and add the bias, where there is one."""
    x, gain, bias, out, width, eps = SIX(args)
    for row in range(4 * width * first, 4 * width * end, 4 * width):
        mean = _sum(x + row, width) / F(width)
        scale = _inverse_root(_sum_of_squares(x + row, width, mean), width, real(eps))
        whole = 4 * (width - width % 16)
        for i in range(0, whole, 64):
            y = (load(f32x16, x + row + i) - splat(f32x16, mean)) * splat(f32x16, scale) * load(f32x16, gain + i)
            store(y + load(f32x16, bias + i) if bias else y, out + row + i)
        for i in range(whole, 4 * width, 4):
            single = (load(float32, x + row + i) - mean) * scale * load(float32, gain + i)
            store(single + load(float32, bias + i) if bias else single, out + row + i)


@kernel
def added(args, first, end):
    """Add blocks of numbers."""
    x, y, out, n = FOUR(args)
    start, last = BLOCK * first, min(BLOCK * end, n)
    whole = last - (last - start) % 16
    for at in range(4 * start, 4 * whole, 64):
        store(load(f32x16, x + at) + load(f32x16, y + at), out + at)
    for at in range(4 * whole, 4 * last, 4):
        store(load(float32, x + at) + load(float32, y + at), out + at)


def rms_norm(x: int, gain: int, out: int, rows: int, width: int, eps: float) -> Launch:
    """Divide each row by its root mean square, and multiply by the gain.  (rows, width) (width,) -> (rows, width)

    Arrays are addresses of float32; `out` may be `x`."""
    return Launch(normed, arguments(x, gain, out, width, float(eps)), rows, max(1, WORTH // width))


def layer_norm(x: int, gain: int, bias: int, out: int, rows: int, width: int, eps: float) -> Launch:
    """Move each row to mean 0 and mean square 1, times the gain, plus the bias, 0 for none.

    (rows, width) (width,) (width,) -> (rows, width). Arrays are addresses of float32; `out` may be `x`."""
    return Launch(centred, arguments(x, gain, bias, out, width, float(eps)), rows, max(1, WORTH // width))


def add(x: int, y: int, out: int, n: int) -> Launch:
    """Add n numbers at addresses of float32; `out` may be either."""
    return Launch(added, arguments(x, y, out, n), -(-n // BLOCK), WORTH // BLOCK)
