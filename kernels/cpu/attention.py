"""Attend from a few rows over caches of float16: a decoded token of each of a few sequences.

T rows, H query heads, Hkv key/value heads, dh head size. The query heads of a key/value head go together, so that keys
and values are read from memory once: 64 at a time, which the first cache holds until the last head has used them. A
row's keys are cut into at most 8 parts by their number alone; whichever part is done last adds them up, in their order.
So a row depends neither on other rows nor on threads. Sums are float32.
"""

from functools import cache, partial

import numpy as np

from .attention_tiles import TILE, dots, passes, weighted
from .compiled import Kernel
from .exponential import exp
from .lanes import choose, first, lane, larger, largest, total
from .launch import Launch, arguments
from .llvm import I64, pointer
from .simd import f32, f32x16, i64, load, load_some, real, splat, store, store_some, words
from .traced import Cell, Number, Value, least, loop, most, operation, pick, when

BLOCK = 64  # keys between two looks at the largest score
PARTS = 8
LEAST = 128  # keys of a part
HEAD = 11  # arguments
NONE = -float("inf")


@operation
def count_up(builder, address):
    """Add 1 to an int64 that other threads count too, and return what it was; what they wrote before is seen."""
    return builder.atomic_rmw("add", pointer(builder, I64, address), I64(1), "acq_rel")


def _exp(x: Number) -> Value:
    """Return e^x of one number."""
    return lane(exp(splat(f32x16, x)), 0)


def _softmax(heads: int, scores: Number, count: Number, state: Number, padded: Number) -> list[Value]:
    """Turn the first `count` of 64 scores of each head into weights over its largest so far.

    At `state` are the largest scores of all heads, then the sums of their weights. Returns factors for older sums."""
    rows = [[scores + 4 * BLOCK * h + 64 * i for i in range(BLOCK // 16)] for h in range(heads)]
    with when(count < BLOCK):
        for row in rows:
            for i, at in enumerate(row):
                store(choose(first(f32x16, count - 16 * i), load(f32x16, at), NONE), at)
    factors = []
    for h, row in enumerate(rows):
        a, b, c, d = (load(f32x16, at) for at in row)
        mine, sums = state + 4 * h, state + 4 * (padded + h)
        before = load(f32, mine)
        top = most(before, largest(larger(larger(a, b), larger(c, d))))
        factor, (a, b, c, d) = _exp(before - top), (exp(x - top) for x in (a, b, c, d))
        for x, at in zip((a, b, c, d), row, strict=True):
            store(x, at)
        store(top, mine)
        store(load(f32, sums) * factor + total((a + b) + (c + d)), sums)
        factors.append(factor)
    return factors


def _begin(q: Number, scale: Number, place: Number, group: Number, padded: Number, width: int, wide: int) -> None:
    """Lay the scaled queries of `group` heads at `place`, `wide` numbers each, zeros behind them up to `padded` heads,
    sums of 0 behind those, and the state of `_softmax`."""
    for h in loop(0, padded):
        for i in loop(0, width, 16):
            x = load_some(f32x16, pick(h < group, least(16, width - i), 0), q + 4 * (h * width + i))
            store(x * scale, place + 4 * (h * wide + i))
            store(splat(f32x16, 0.0), place + 4 * ((padded + h) * wide + i))
        state = place + 4 * (2 * padded * wide + h)
        store(NONE, state)
        store(0.0, state + 4 * padded)


def _finish(
    place: Number, step: Number, parts: Number, out: Number, group: Number, padded: Number, width: int, wide: int
) -> None:
    """Add up the parts, `step` bytes apart, of each head, and divide by the sums of their weights."""
    for h in loop(0, group):
        state, sums = place + 4 * (2 * padded * wide + h), place + 4 * (padded + h) * wide
        top, weight = Cell(NONE), Cell(0.0)
        for part in loop(0, parts):
            top.value = most(top.value, load(f32, state + part * step))
        for part in loop(0, parts):
            at = state + part * step
            factor = _exp(load(f32, at) - top.value)
            weight.value = weight.value + factor * load(f32, at + 4 * padded)
            store(factor, at)
        for i in loop(0, width, 16):
            y = Cell(splat(f32x16, 0.0))
            for part in loop(0, parts):
                factor = load(f32, state + part * step)
                y.value = y.value + factor * load(f32x16, sums + 4 * i + part * step)
            store_some(y.value / weight.value, least(16, width - i), out + 4 * (h * width + i))


def _part(ranges: Number, t: Number, part: Number) -> tuple[Value, Value, Value]:
    """Return the number of parts of a row's keys, and the first and the behind-last key of one."""
    begin, behind = load(i64, ranges + 16 * t), load(i64, ranges + 16 * t + 8)
    size = most(LEAST, (behind - begin + PARTS * BLOCK - 1) // (PARTS * BLOCK) * BLOCK)
    start = begin + part * size
    return most(1, (behind - begin + size - 1) // size), start, least(behind, start + size)


def _scores(
    heads: int, width: int, q: Number, q_row: Number, key: Number, before: Number, count: Number, out: Number,
    ahead: Number,
) -> None:  # fmt: skip
    """Write the scores of `heads` queries and `count` keys, some keys at a time, and ask for memory.

    The last ones begin earlier, with keys that are done or, of `before` keys, whose scores nobody reads. Where there
    are too few of both, keys are done one by one, as if each were there as often as is needed."""
    keys, row = TILE // heads, 2 * width
    few = before + count < keys
    step, apart = pick(few, 1, keys), pick(few, 0, row)
    for k in loop(0, count, step):
        at = pick(few, k, least(k, count - keys))
        dots(heads, width, q, q_row, key + row * at, apart, out + 4 * at, 4 * BLOCK, ahead + row * at)


def _block(
    heads: int, width: int, place: Number, key: Number, value: Number, before: Number, count: Number, padded: Number,
    wide: int,
) -> None:  # fmt: skip
    """Attend to `count` keys, 64 at most, with all heads of a group, `heads` at a time.

    The values are asked for while the keys are read, and the next keys meanwhile."""
    row, apart, near = 2 * width, 4 * wide, 4 * BLOCK
    state, scores = place + 8 * padded * wide, place + 8 * padded * (wide + 1) + 4 * TILE
    for h in loop(0, padded, heads):
        sums = place + apart * (padded + h)
        _scores(heads, width, place + apart * h, apart, key, before, count, scores, value)
        factors = _softmax(heads, scores, count, state + 4 * h, padded)
        for start, end, vectors in passes(heads, width):
            for i in loop(start, end, vectors * TILE):
                at, ahead = value + 2 * i, key + row * BLOCK + 2 * count * i
                weighted(heads, vectors, scores, near, at, row, count, factors, sums + 4 * i, apart, ahead)
        if rest := width % TILE:
            at, to = value + 2 * (width - rest), sums + 4 * (width - rest)
            weighted(heads, 1, scores, near, at, row, count, factors, to, apart, key, rest)


def _attended(heads: int, width: int, args: Number, begin: Number, end: Number) -> None:
    """Attend from rows: an item is a part of the keys of one key/value head of one row."""
    q, table, ranges, out, Hkv, group, padded, scale, counters, scratch, step = words(args, HEAD)
    wide = -(-width // 16) * 16
    for item in loop(begin, end):
        part, row = item % PARTS, item // PARTS
        parts, start, stop = _part(ranges, row // Hkv, part)
        with when(part < parts):
            cache, place, mine = table + 24 * (row // Hkv), scratch + step * item, group * width * row
            _begin(q + 4 * mine, real(scale), place, group, padded, width, wide)
            keys, values, apart = words(cache, 3)
            for j in loop(start, stop, BLOCK):
                at, count = apart * (row % Hkv) + 2 * width * j, least(BLOCK, stop - j)
                _block(heads, width, place, keys + at, values + at, j - start, count, padded, wide)
            with when(count_up(counters + 8 * row) == parts - 1):
                store(0, counters + 8 * row)
                _finish(scratch + step * PARTS * row, step, parts, out + 4 * mine, group, padded, width, wide)


@cache
def _kernel(heads: int, width: int) -> Kernel:
    """Make the kernel that takes so many query heads of this size at a time."""
    return Kernel(f"attention.attended_{heads}_of_{width}", partial(_attended, heads, width))


def attention(
    q: int, table: int, ranges: int, out: int, rows: int, n_head: int, n_head_kv: int, head_size: int, scale: float
) -> Launch:
    """Return softmax(q k^T * scale) v of each row over its own keys.  (T, H, dh) (T, 3) (T, 2) -> (T, H * dh)

    q, out: addresses of float32. table, ranges: addresses of int64; for each row the address of its keys, of its
    values, (Hkv, room, dh) float16, and the bytes from head to head; the first and the behind-last key that it sees."""
    group = n_head // n_head_kv
    heads = min(4, 1 << (group - 1).bit_length())
    padded, wide = -(-group // heads) * heads, -(-head_size // 16) * 16
    floats = 2 * padded * (wide + 1) + TILE + heads * BLOCK
    step = -(-4 * floats // 64) * 64
    units = rows * n_head_kv
    args = np.zeros(HEAD + units + 8 + PARTS * units * step // 8, np.int64)
    counters = args.ctypes.data + 8 * HEAD
    scratch = -(-(counters + 8 * units) // 64) * 64
    numbers = (q, table, ranges, out, n_head_kv, group, padded, float(scale))
    args[:HEAD] = arguments(*numbers, counters, scratch, step)
    return Launch(_kernel(heads, head_size), args, PARTS * units, 1)
