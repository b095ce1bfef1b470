"""Attend from a few rows over caches of float16: a decoded token of each of a few sequences.

T rows, H query heads, Hkv key/value heads, dh head size. The query heads of a key/value head go together, so that keys
and values are read from memory once: 64 at a time, which the first cache holds until the last head has used them. A
row's keys are cut into at most 8 parts by their number alone; whichever part is done last adds them up, in their order.
So a row depends neither on other rows nor on threads. Sums are float32.
"""

from functools import cache

import numpy as np
from numba import float32, int64, njit, types

from .attention_tiles import TILE, dots, weighted
from .exponential import exp
from .functions import Kernel, inlined, kernel
from .lanes import choose, first, lane, larger, largest, total
from .launch import Launch, arguments
from .simd import I64, f32x16, load, load_some, operation, pointer, splat, store, store_some
from .words import real, words

F = np.float32
BLOCK = 64  # keys between two looks at the largest score
PARTS = 8
LEAST = 128  # keys of a part
HEAD = 14
FOURTEEN = words(HEAD)
VECTORS = 4 if TILE == 16 else 1


@operation(lambda address: types.int64)
def count_up(builder, address):
    """Add 1 to an int64 that other threads count too, and return what it was; what they wrote before is seen."""
    return builder.atomic_rmw("add", pointer(builder, I64, address), I64(1), "acq_rel")


@inlined
def _exp(x):
    """Return e^x of one number."""
    return lane(exp(splat(f32x16, x)), 0)


@inlined
def _softmax(scores, count, state, group):
    """Turn the first `count` of 64 scores into weights over the largest so far, and return the factor of older sums.

    At `state` are the largest scores of `group` heads, then the sums of their weights."""
    low = splat(f32x16, F(-np.inf))
    a = choose(first(f32x16, count), load(f32x16, scores), low)
    b = choose(first(f32x16, count - 16), load(f32x16, scores + 64), low)
    c = choose(first(f32x16, count - 32), load(f32x16, scores + 128), low)
    d = choose(first(f32x16, count - 48), load(f32x16, scores + 192), low)
    before, sums = load(float32, state), state + 4 * group
    top = max(before, largest(larger(larger(a, b), larger(c, d))))
    factor, most = _exp(before - top), splat(f32x16, top)
    a, b, c, d = exp(a - most), exp(b - most), exp(c - most), exp(d - most)
    store(a, scores)
    store(b, scores + 64)
    store(c, scores + 128)
    store(d, scores + 192)
    store(top, state)
    store(load(float32, sums) * factor + total((a + b) + (c + d)), sums)
    return factor


@inlined
def _begin(q, scale, place, group, padded, width, wide):
    """Lay the scaled queries of `group` heads at `place`, `wide` numbers each, zeros behind them up to `padded` heads,
    sums of 0 behind those, and the state of `_softmax`."""
    for h in range(padded):
        for i in range(0, width, 16):
            x = load_some(f32x16, min(16, width - i) if h < group else 0, q + 4 * (h * width + i))
            store(x * splat(f32x16, scale), place + 4 * (h * wide + i))
            store(splat(f32x16, F(0)), place + 4 * ((padded + h) * wide + i))
        state = place + 4 * (2 * padded * wide + h)
        store(F(-np.inf), state)
        store(F(0), state + 4 * padded)


@inlined
def _finish(place, step, parts, out, group, padded, width, wide):
    """Add up the parts, `step` bytes apart, of each head, and divide by the sums of their weights."""
    for h in range(group):
        state, sums = place + 4 * (2 * padded * wide + h), place + 4 * (padded + h) * wide
        top, weight = F(-np.inf), F(0)
        for part in range(parts):
            top = max(top, load(float32, state + part * step))
        for part in range(parts):
            at = state + part * step
            factor = _exp(load(float32, at) - top)
            weight += factor * load(float32, at + 4 * padded)
            store(factor, at)
        for i in range(0, width, 16):
            y = splat(f32x16, F(0))
            for part in range(parts):
                factor = splat(f32x16, load(float32, state + part * step))
                y = y + factor * load(f32x16, sums + 4 * i + part * step)
            store_some(y / splat(f32x16, weight), min(16, width - i), out + 4 * (h * width + i))


@inlined
def _part(ranges, t, part):
    """Return the number of parts of a row's keys, and the first and the behind-last key of one."""
    begin, behind = load(int64, ranges + 16 * t), load(int64, ranges + 16 * t + 8)
    size = max(LEAST, -(-(behind - begin) // (PARTS * BLOCK)) * BLOCK)
    start = begin + part * size
    return max(1, -(-(behind - begin) // size)), start, min(behind, start + size)


@njit(inline="always")
def _over(args, first, end, heads, dots, weighted, one, some):
    """Attend from rows: an item is a part of the keys of one key/value head of one row."""
    q, table, ranges, out, rows, Hkv, group, padded, width, wide, scale, counters, scratch, step = FOURTEEN(args)
    whole = width - width % 16
    most = whole - whole % (16 * VECTORS)
    for item in range(first, end):
        part, row = item // (rows * Hkv), item % (rows * Hkv)
        parts, start, stop = _part(ranges, row // Hkv, part)
        if part >= parts:
            continue
        cache, place, near = table + 24 * (row // Hkv), scratch + step * (PARTS * row + part), 4 * BLOCK
        state, apart = place + 8 * padded * wide, load(int64, cache + 16) * (row % Hkv)
        factors, scores = state + 8 * padded, state + 8 * padded + 64
        _begin(q + 4 * row * group * width, real(scale), place, group, padded, width, wide)
        for j in range(start, stop, BLOCK):
            count, key_row = min(BLOCK, stop - j), 2 * width
            key, value = (load(int64, cache) + apart + key_row * j, load(int64, cache + 8) + apart + key_row * j)
            for h in range(0, padded, heads):
                mine, sums = place + 4 * h * wide, place + 4 * (padded + h) * wide
                for k in range(0, count, TILE // heads):
                    dots(mine, 4 * wide, key + key_row * k, key_row, count - k, width, scores + 4 * k, near)
                for g in range(min(heads, group - h)):
                    store(_softmax(scores + near * g, count, state + 4 * (h + g), padded), factors + 4 * g)
                for i in range(0, most, 16 * VECTORS):
                    weighted(scores, near, value + 2 * i, key_row, count, factors, sums + 4 * i, 4 * wide, 16)
                for i in range(most, whole, 16):
                    one(scores, near, value + 2 * i, key_row, count, factors, sums + 4 * i, 4 * wide, 16)
                if whole < width:
                    i = whole
                    some(scores, near, value + 2 * i, key_row, count, factors, sums + 4 * i, 4 * wide, width - i)
        if parts == 1 or count_up(counters + 8 * row) == parts - 1:
            store(int64(0), counters + 8 * row)
            all_parts, to = scratch + step * PARTS * row, out + 4 * row * group * width
            _finish(all_parts, step, parts, to, group, padded, width, wide)


D1, D2, D4 = dots(1), dots(2), dots(4)
W1, W2, W4 = weighted(1, VECTORS), weighted(2, VECTORS), weighted(4, VECTORS)
O1, O2, O4 = weighted(1, 1), weighted(2, 1), weighted(4, 1)
S1, S2, S4 = weighted(1, 1, some=True), weighted(2, 1, some=True), weighted(4, 1, some=True)


def single(args, first, end):
    _over(args, first, end, 1, D1, W1, O1, S1)


def pairs(args, first, end):
    _over(args, first, end, 2, D2, W2, O2, S2)


def fours(args, first, end):
    _over(args, first, end, 4, D4, W4, O4, S4)


@cache
def _kernel(heads: int) -> Kernel:
    """Compile the kernel that takes so many query heads at a time."""
    return kernel({1: single, 2: pairs, 4: fours}[heads])


def attention(
    q: int, table: int, ranges: int, out: int, rows: int, n_head: int, n_head_kv: int, head_size: int, scale: float
) -> Launch:
    """Return softmax(q k^T * scale) v of each row over its own keys.  (T, H, dh) (T, 3) (T, 2) -> (T, H * dh)

    q, out: addresses of float32. table, ranges: addresses of int64; for each row the address of its keys, of its
    values, (Hkv, room, dh) float16, and the bytes from head to head; the first and the behind-last key that it sees."""
    group = n_head // n_head_kv
    heads = min(4, 1 << (group - 1).bit_length())
    padded, wide = -(-group // heads) * heads, -(-head_size // 16) * 16
    floats = 2 * padded * wide + 2 * padded + 16 + heads * BLOCK
    step = -(-4 * floats // 64) * 64
    units = rows * n_head_kv
    args = np.zeros(HEAD + units + 8 + PARTS * units * step // 8, np.int64)
    counters = args.ctypes.data + 8 * HEAD
    scratch = -(-(counters + 8 * units) // 64) * 64
    numbers = (q, table, ranges, out, rows, n_head_kv, group, padded, head_size, wide, float(scale))
    args[:HEAD] = arguments(*numbers, counters, scratch, step)
    return Launch(_kernel(heads), args, PARTS * units, 1)
