"""Attend from many rows by tiles of bfloat16 (AMX).   T queries, S keys, dh head size, D = dh up to 32s.

An item is 32 queries of a head. 512 keys at a time their scores, float32 on the stack, are made weights over the
largest score so far and multiplied by the values, which `tile_packing` has laid out as tiles. Queries and keys are two
bfloat16 a number, of which the three large products count: a score of 20 would else be wrong by 0.05, and its weight
by a twentieth. Weights and values are two as well, or one: that is 2.3e-3 of the result, whatever the scores.
"""

import math
from functools import cache, partial

from . import amx
from .amx import TileOperand, TileProduct
from .compiled import Kernel
from .lanes import bits, choose, first, fma, lane, larger, largest, total
from .simd import f32, f32x16, i32x16, i64, load, load_some, real, splat, store, store_some, words
from .tile_packing import pack_row
from .traced import Cell, Number, Value, least, loop, most, otherwise, pick, room, when

ROWS, KEYS = 32, 512  # of a block: two tiles of queries, sixteen of 32 keys
MOST = 256  # of D
SCORE_ROW, WEIGHT_ROW = 4 * KEYS + 64, 2 * KEYS + 64  # bytes; not a power of two, for the sake of the first cache
WEIGHT_TERM = WEIGHT_ROW * ROWS
ROOMS = 2 * 2 * ROWS * MOST, ROWS * SCORE_ROW, 2 * WEIGHT_TERM, 4 * ROWS * MOST, 8 * ROWS
"""Bytes on the stack: queries, scores, weights, sums, the state of each query."""
SHIFT = 1.5 * 2**23  # added to a smaller number, it leaves the nearest whole one in the low bits


def exp2(x: Value) -> Value:
    """Return 2^x for x <= 0, to 3e-6 of it, and not less than 2^-126."""
    x = larger(splat(f32x16, -126.0), x)
    shifted = x + SHIFT
    r = x - (shifted - SHIFT)
    y = fma(splat(f32x16, 0.0095700816), r, splat(f32x16, 0.055917859))
    y = fma(y, r, splat(f32x16, 0.24024745))
    y = fma(y, r, splat(f32x16, 0.69312182))
    return raised(fma(y, r, splat(f32x16, 0.99999926)), shifted)


def raised(a: Value, shifted: Value) -> Value:
    """Return a 2^n for normal results; `shifted` is n + SHIFT."""
    return bits(f32x16, bits(i32x16, a) + (bits(i32x16, shifted) << 23))


def _within(x: Value, other: Value, begin: Number, end: Number) -> Value:
    """Return lanes begin to end - 1 of x, and those of `other` around them."""
    return choose(first(f32x16, begin), other, choose(first(f32x16, end), x, other))


def _largest(scores: Number, begin: Number, end: Number) -> Value:
    """Return the largest score of begin <= key < end."""
    low = splat(f32x16, -math.inf)
    a, b = Cell(low), Cell(low)
    whole, last = (begin + 15) & -16, end & -16
    for j in loop(whole, last - 16, 32):
        a.value = larger(a.value, load(f32x16, scores + 4 * j))
        b.value = larger(b.value, load(f32x16, scores + 4 * j + 64))
    with when(last > whole):
        a.value = larger(a.value, load(f32x16, scores + 4 * last - 64))
    with when(begin < whole):
        x = load(f32x16, scores + 4 * whole - 64)
        b.value = larger(b.value, _within(x, low, begin - whole + 16, end - whole + 16))
    with when(last < end):
        b.value = larger(b.value, _within(load(f32x16, scores + 4 * last), low, begin - last, end - last))
    return largest(larger(a.value, b.value))


def _weights(scores: Number, j: Number, scale: Value, less: Value) -> Value:
    """Return 16 weights."""
    return exp2(fma(load(f32x16, scores + 4 * j), splat(f32x16, scale), less))


def _weights_within(scores: Number, j: Number, begin: Number, end: Number, scale: Value, less: Value) -> list[Value]:
    """Return weights j to j + 31 in two vectors: those of begin <= key < end, others are 0."""
    a, b = (Cell(splat(f32x16, 0.0)) for _ in range(2))
    whole = (begin <= j) & (j + 32 <= end)
    with when(whole):
        a.value, b.value = (_weights(scores, j + i, scale, less) for i in (0, 16))
    with otherwise(whole):
        with when((begin < j + 32) & (j < end)):
            a.value, b.value = (
                _within(_weights(scores, j + i, scale, less), splat(f32x16, 0.0), begin - j - i, end - j - i)
                for i in (0, 16)
            )
    return [a.value, b.value]


def _scores_to_weights(scores, weights, term, count, begin, end, scale, state):
    """Turn a row of `count` scores into weights over the largest so far: those of begin <= key < end, others are 0.

    At `state` are the largest score and, 4 ROWS behind, the sum of weights. Return the factor of older sums."""
    before = load(f32, state)
    top, factor = Cell(before), Cell(1.0)
    with when(begin < end):
        top.value = most(_largest(scores, begin, end) * scale, before)
    less, sums = splat(f32x16, -top.value), [Cell(splat(f32x16, 0.0)) for _ in range(2)]
    for j in loop(0, count, 32):
        a, b = _weights_within(scores, j, begin, end, scale, less)
        sums[0].value, sums[1].value = sums[0].value + a, sums[1].value + b
        pack_row(a, b, weights + 2 * j, term)
    with when(before < top.value):
        factor.value = lane(exp2(splat(f32x16, before - top.value)), 0)
    store(top.value, state)
    store(load(f32, state + 4 * ROWS) * factor.value + total(sums[0].value + sums[1].value), state + 4 * ROWS)
    return factor.value


def _pack_queries(q, row, count, width, out, chunks, term, state):
    """Lay up to ROWS queries out as tiles of 16 rows of 32 channels; rows from `count` on are zeros.

    And begin the state of each: no largest score yet, and a sum of 0."""
    for r in loop(0, ROWS):
        store(-math.inf, state + 4 * r)
        store(0.0, state + 4 * ROWS + 4 * r)
        for chunk in loop(0, chunks):
            at, left = q + row * r + 128 * chunk, pick(r < count, width - 32 * chunk, 0)
            a, b = load_some(f32x16, left, at), load_some(f32x16, left - 16, at + 64)
            pack_row(a, b, out + 1024 * ((r // 16) * chunks + chunk) + 64 * (r % 16), term)


def _scale(row: Number, size: Number, factor: Value) -> None:
    """Multiply a row of sums, `size` bytes, by a factor."""
    with when(factor != 1.0):
        for i in loop(row, row + size, 64):
            store(load(f32x16, i) * factor, i)


def _write(sums, state, out, row, count, width, sums_row):
    """Divide the sums of `count` queries by those of their weights."""
    for r in loop(0, count):
        share = 1.0 / load(f32, state + 4 * ROWS + 4 * r)
        for i in loop(0, width, 16):
            store_some(load(f32x16, sums + sums_row * r + 4 * i) * share, width - i, out + row * r + 4 * i)


def _reach(ranges: Value, start: Number, stop: Number, S: Number) -> tuple[Value, Value]:
    """Return the first and the behind-last key that any of these queries sees."""
    begin, end = Cell(0), Cell(S)
    with when(ranges != 0):
        begin.value, end.value = load(i64, ranges + 16 * start), load(i64, ranges + 16 * start + 8)
        for t in loop(start + 1, stop):
            begin.value = least(begin.value, load(i64, ranges + 16 * t))
            end.value = most(end.value, load(i64, ranges + 16 * t + 8))
    return begin.value, end.value


def _inside(ranges: Value, t: Number, S: Number, block: Number, n: Number) -> list[Value]:
    """Return the first and the behind-last of n keys from `block` on that a query sees, counted from there."""
    return [most(0, least(n, key - block)) for key in _reach(ranges, t, t + 1, S)]


def _scores(packed: Number, q_term: Number, keys: Number, term: Number, chunks: Number, n: Number, out: Number) -> None:
    """Write the scores of 32 queries and n keys."""
    query = TileOperand(packed, 1024 * chunks, 64, 1024, q_term)
    for j in loop(0, n, 32):
        key = TileOperand(keys + 64 * chunks * j, 1024 * chunks, 64, 1024, term)
        TileProduct(2, 2, 2)(query, key, chunks, out + 4 * j, SCORE_ROW, 0)


def _sums(weights, values, term, chunks, n, terms, out, more):
    """Write the sums of n values times their weights, of so many terms, or add them where `more` is not 0."""
    weight = TileOperand(weights, 16 * WEIGHT_ROW, WEIGHT_ROW, 64, WEIGHT_TERM)
    for chunk in loop(0, chunks):
        value = TileOperand(values + 2048 * chunk, 1024, 64, 2048 * chunks, term)
        TileProduct(2, 2, terms)(weight, value, n // 32, out + 128 * chunk, 128 * chunks, more)


def _attend(args: Number, begin: Number, end: Number, terms: int) -> None:
    """Attend from 32 queries of a head, an item; by weights and values of so many terms."""
    q, q_row, out, out_row, ranges, keys, values, T, S, group, blocks, steps, width, chunks, term, scale = words(
        args, 16
    )
    packed, scores, weights, sums, state = (room(size // 64) for size in ROOMS)
    q_term, w_term, sums_row = 2048 * ROWS // 32 * chunks, WEIGHT_TERM if terms == 2 else None, 128 * chunks
    with amx.tiles():
        for item in loop(begin, end):
            head, start = item // blocks, ROWS * (item % blocks)
            count, behind = least(ROWS, T - start), 2048 * chunks * steps * (head // group)
            reached, high = _reach(ranges, start, start + count, S)
            low, at = reached & -32, q + q_row * start + 4 * width * head
            _pack_queries(at, q_row, count, width, packed, chunks, q_term, state)
            for block in loop(low, high, KEYS):
                n, place = least(KEYS, (high - block + 31) & -32), behind + 64 * chunks * block
                _scores(packed, q_term, keys + place, term, chunks, n, scores)
                for r in loop(0, count):
                    a, b = _inside(ranges, start + r, S, block, n)
                    row, to = scores + SCORE_ROW * r, weights + WEIGHT_ROW * r
                    factor = _scores_to_weights(row, to, w_term, n, a, b, real(scale), state + 4 * r)
                    with when(block > low):
                        _scale(sums + sums_row * r, sums_row, factor)
                _sums(weights, values + place, term, chunks, n, terms, sums, block - low)
            _write(sums, state, out + out_row * start + 4 * width * head, out_row, count, width, sums_row)


@cache
def attended(terms: int) -> Kernel:
    """Return the kernel for values, and weights, of so many terms."""
    return Kernel(f"tile_attention.attended_{terms}", partial(_attend, terms=terms))
