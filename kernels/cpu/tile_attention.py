"""Attend from many rows by tiles of bfloat16 (AMX).   T queries, S keys, dh head size, D = dh up to 32s.

An item is 32 queries of a head. 512 keys at a time their scores, float32 on the stack, are made weights over the
largest score so far and multiplied by the values, which `tile_packing` has laid out as tiles. Queries and keys are two
bfloat16 a number, of which the three large products count: a score of 20 would else be wrong by 0.05, and its weight
by a twentieth. Weights and values are two as well, or one: that is 2.3e-3 of the result, whatever the scores.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, njit, types

from . import amx
from .functions import Kernel, inlined, kernel
from .lanes import choose, first, fma, lane, larger, largest, total
from .simd import I32, I64, constant, f32x16, load, load_some, operation, splat, store, store_some
from .tile_packing import pack_row
from .words import real, words

F = np.float32
ROWS, KEYS = 32, 512  # of a block: two tiles of queries, sixteen of 32 keys
MOST = 256  # of D
SCORE_ROW, WEIGHT_ROW = 4 * KEYS + 64, 2 * KEYS + 64  # bytes; not a power of two, for the sake of the first cache
ARGS = words(16)


def room(size: int) -> Any:
    """Make a function that returns the address of `size` bytes on the stack."""

    @operation(lambda: types.int64)
    def room(builder):
        with builder.goto_entry_block():
            place = builder.alloca(ir.IntType(8), size)  # not as one array: LLVM would look at each of its elements
            place.align = 64
        return builder.ptrtoint(place, I64)

    return room


@inlined
def exp2(x):
    """Return 2^x for x <= 0, to 3e-6 of it, and not less than 2^-126."""
    low = splat(f32x16, F(-126))
    x = larger(low, x)
    shifted = x + splat(f32x16, F(1.5 * 2**23))
    r = x - (shifted - splat(f32x16, F(1.5 * 2**23)))
    y = fma(splat(f32x16, F(0.0095700816)), r, splat(f32x16, F(0.055917859)))
    y = fma(y, r, splat(f32x16, F(0.24024745)))
    y = fma(y, r, splat(f32x16, F(0.69312182)))
    return raised(fma(y, r, splat(f32x16, F(0.99999926))), shifted)


@operation(lambda a, shifted: f32x16)
def raised(builder, a, shifted):
    """Return a 2^n for normal results; `shifted` is n + 1.5 * 2^23."""
    whole = ir.VectorType(I32, 16)
    n = builder.shl(builder.bitcast(shifted, whole), constant(whole, 23))
    return builder.bitcast(builder.add(builder.bitcast(a, whole), n), a.type)


@inlined
def _within(x, other, begin, end):
    """Return lanes begin to end - 1 of x, and those of `other` around them."""
    return choose(first(f32x16, begin), other, choose(first(f32x16, end), x, other))


@inlined
def _largest(scores, begin, end):
    """Return the largest score of begin <= key < end."""
    low, a, b = splat(f32x16, F(-np.inf)), splat(f32x16, F(-np.inf)), splat(f32x16, F(-np.inf))
    whole, last = (begin + 15) & -16, end & -16
    for j in range(whole, last - 16, 32):
        a, b = larger(a, load(f32x16, scores + 4 * j)), larger(b, load(f32x16, scores + 4 * j + 64))
    if last > whole:
        a = larger(a, load(f32x16, scores + 4 * last - 64))
    if begin < whole:
        b = larger(b, _within(load(f32x16, scores + 4 * whole - 64), low, begin - whole + 16, end - whole + 16))
    if last < end:
        b = larger(b, _within(load(f32x16, scores + 4 * last), low, begin - last, end - last))
    return largest(larger(a, b))


@inlined
def _weights(scores, j, scale, less):
    """Return 16 weights."""
    return exp2(fma(load(f32x16, scores + 4 * j), splat(f32x16, scale), less))


@inlined
def _scores_to_weights(scores, weights, term, count, begin, end, scale, state):
    """Turn a row of `count` scores into weights over the largest so far: those of begin <= key < end, others are 0.

    At `state` are the largest score and, 4 ROWS behind, the sum of weights. Return the factor of older sums."""
    zero, before = splat(f32x16, F(0)), load(float32, state)
    most = max(before, _largest(scores, begin, end) * scale) if begin < end else before
    less, sums, more = splat(f32x16, -most), zero, zero
    for j in range(0, count, 32):
        a, b = zero, zero
        if begin <= j and j + 32 <= end:
            a, b = _weights(scores, j, scale, less), _weights(scores, j + 16, scale, less)
        elif begin < j + 32 and j < end:
            a = _within(_weights(scores, j, scale, less), zero, begin - j, end - j)
            b = _within(_weights(scores, j + 16, scale, less), zero, begin - j - 16, end - j - 16)
        sums, more = sums + a, more + b
        pack_row(a, b, weights + 2 * j, term)
    factor = lane(exp2(splat(f32x16, before - most)), 0) if before < most else F(1)
    store(most, state)
    store(load(float32, state + 4 * ROWS) * factor + total(sums + more), state + 4 * ROWS)
    return factor


@inlined
def _pack_queries(q, row, count, width, out, chunks, term, state):
    """Lay up to ROWS queries out as tiles of 16 rows of 32 channels; rows from `count` on are zeros.

    And begin the state of each: no largest score yet, and a sum of 0."""
    for r in range(ROWS):
        store(F(-np.inf), state + 4 * r)
        store(F(0), state + 4 * ROWS + 4 * r)
        for chunk in range(chunks):
            at, left = q + row * r + 128 * chunk, (width - 32 * chunk if r < count else 0)
            a = load_some(f32x16, max(0, min(16, left)), at)
            b = load_some(f32x16, max(0, min(16, left - 16)), at + 64)
            pack_row(a, b, out + 1024 * ((r // 16) * chunks + chunk) + 64 * (r % 16), term)


@inlined
def _scale(row, size, factor):
    """Multiply a row of sums, `size` bytes, by a factor."""
    if factor != F(1):
        for i in range(row, row + size, 64):
            store(load(f32x16, i) * splat(f32x16, factor), i)


@inlined
def _write(sums, state, out, row, count, width, sums_row):
    """Divide the sums of `count` queries by those of their weights."""
    for r in range(count):
        share = splat(f32x16, F(1) / load(float32, state + 4 * ROWS + 4 * r))
        for i in range(0, width, 16):
            store_some(load(f32x16, sums + sums_row * r + 4 * i) * share, min(16, width - i), out + row * r + 4 * i)


@inlined
def _reach(ranges, start, stop, S):
    """Return the first and the behind-last key that any of these queries sees."""
    if ranges == 0:
        return 0, S
    begin, end = load(int64, ranges + 16 * start), load(int64, ranges + 16 * start + 8)
    for t in range(start + 1, stop):
        begin, end = min(begin, load(int64, ranges + 16 * t)), max(end, load(int64, ranges + 16 * t + 8))
    return begin, end


@inlined
def _inside(ranges, t, S, block, n):
    """Return the first and the behind-last of n keys from `block` on that a query sees, counted from there."""
    begin, end = _reach(ranges, t, t + 1, S)
    return max(0, min(n, begin - block)), max(0, min(n, end - block))


@njit(inline="always")
def _over(args, begin, end, product, weighted, terms):
    """Attend from 32 queries of a head, an item."""
    q, q_row, out, out_row, ranges, keys, values, T, S, group, blocks, steps, width, chunks, term, scale = ARGS(args)
    packed, scores, weights, sums, state = PACKED(), SCORES(), WEIGHTS(), SUMS(), STATE()
    q_term, w_term, sums_row = 2048 * ROWS // 32 * chunks, WEIGHT_ROW * ROWS, 128 * chunks
    amx.configure()
    for item in range(begin, end):
        head, start = item // blocks, ROWS * (item % blocks)
        count, behind = min(ROWS, T - start), 2048 * chunks * steps * (head // group)
        low, high = _reach(ranges, start, start + count, S)
        low, at = low & -32, q + q_row * start + 4 * width * head
        _pack_queries(at, q_row, count, width, packed, chunks, q_term, state)
        for block in range(low, high, KEYS):
            n = min(KEYS, (high - block + 31) & -32)
            for j in range(0, n, 32):
                product(
                    packed, 1024 * chunks, 64, 1024, q_term,
                    keys + behind + 64 * chunks * (block + j), 1024 * chunks, 1024, term,
                    chunks, scores + 4 * j, SCORE_ROW, 0,
                )  # fmt: skip
            for r in range(count):
                a, b = _inside(ranges, start + r, S, block, n)
                row, to = scores + SCORE_ROW * r, weights + WEIGHT_ROW * r
                factor = _scores_to_weights(row, to, w_term if terms == 2 else 0, n, a, b, real(scale), state + 4 * r)
                if block > low:
                    _scale(sums + sums_row * r, sums_row, factor)
            for chunk in range(chunks):
                weighted(
                    weights, 16 * WEIGHT_ROW, WEIGHT_ROW, 64, w_term,
                    values + behind + 64 * chunks * block + 2048 * chunk, 1024, 2048 * chunks, term,
                    n // 32, sums + 128 * chunk, sums_row, block - low,
                )  # fmt: skip
        _write(sums, state, out + out_row * start + 4 * width * head, out_row, count, width, sums_row)
    amx.release()


PACKED, SCORES = room(2 * 2 * ROWS * MOST), room(ROWS * SCORE_ROW)
WEIGHTS, SUMS, STATE = room(2 * ROWS * WEIGHT_ROW), room(4 * ROWS * MOST), room(8 * ROWS)
ONE_TERM, TWO_TERMS = amx.product(2, 2, 1), amx.product(2, 2, 2)


def rounded_values(args, begin, end):
    _over(args, begin, end, TWO_TERMS, ONE_TERM, 1)


def exact_values(args, begin, end):
    _over(args, begin, end, TWO_TERMS, TWO_TERMS, 2)


@cache
def attended(terms: int) -> Kernel:
    """Compile the kernel for values, and weights, of so many terms."""
    return kernel(rounded_values if terms == 1 else exact_values)
