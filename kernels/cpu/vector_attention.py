"""Attend from many rows with vectors of float32, where the processor has no tiles.

T queries, S keys, H heads, Hkv key/value heads, dh head size. Lanes are queries of one head, `ROWS` of them an item;
keys and values come number by number, and each meets all lanes. So nothing is ever added up across lanes, and a query's
largest score and its range stay in its own. Keys are taken 64 at a time, and converted once for all queries of an item;
those that none of them sees are left out.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from .compiled import Kernel
from .exponential import exp
from .lanes import choose, convert, fma, from_half, larger, largest, less, lower, upper
from .launch import Launch, arguments, run
from .llvm import Kind, shuffled
from .processor import SET
from .simd import f32, i32, i64, load, load_some, real, splat, store, store_some, words
from .traced import Cell, Number, Value, least, loop, most, operation, room, when

LANES = 16 if SET == "avx512" else 8
VECTOR, HALVES, INDICES = (Kind(element, LANES) for element in ("f32", "i16", "i32"))
UNIT = LANES // 2
"""Keys, or numbers of a value, that meet three vectors of queries in registers."""
PANEL, ROWS, KEYS, HEAD = 3 * LANES, 96, 64, 14
LINE, STEP = 4 * PANEL, 4 * UNIT  # bytes
NONE, LOWEST = -float("inf"), -3.0e38  # a hidden score, and the largest one to begin with: without -inf - -inf
Sums = list[list[Cell]]


class Place(NamedTuple):
    """Addresses on the stack. Queries, sums and scores: panels of PANEL queries, a line for each number or key."""

    queries: Number
    sums: Number
    scores: Number
    keys: Number  # a row each
    values: Number  # units of numbers, a line of UNIT for each key
    tops: Number  # the largest score of each query
    weights: Number  # the sum of its weights
    first: Number  # the first key that it sees, int32
    end: Number  # and the one behind the last


def _wide(width: int) -> int:
    """Return what a head's numbers are filled up to."""
    return -(-width // 16) * 16


def _place(wide: int) -> Place:
    """Make room for heads of `wide` numbers."""
    sizes = [ROWS * wide, ROWS * wide, ROWS * KEYS, KEYS * wide, KEYS * wide, *[ROWS] * 4]
    at, starts = room(sum(sizes) // 16), [4 * sum(sizes[:i]) for i in range(len(sizes))]
    return Place(*(at + start for start in starts))


@operation
def transposed(builder, *rows):
    """Return as many vectors as they have lanes: of each row the first lane, of each row the second, ..."""
    rows, far = list(rows), 1
    while far < len(rows):
        low = [i + (len(rows) - far if i & far else 0) for i in range(len(rows))]
        high = [i + (len(rows) if i & far else far) for i in range(len(rows))]
        for i in range(len(rows)):
            if not i & far:
                a, b = rows[i], rows[i + far]
                rows[i], rows[i + far] = shuffled(builder, a, b, low), shuffled(builder, a, b, high)
        far *= 2
    return rows


def _numbers(width: int) -> Iterator[tuple[Number, int]]:
    """Give the first of some numbers of a row, and how many of them there are, LANES at most."""
    whole = width - width % LANES
    for i in loop(0, whole, LANES):
        yield i, LANES
    if whole < width:
        yield whole, width - whole


def _read(half: bool, at: Number, i: Number, count: int) -> Value:
    """Read numbers `i` to `i + count - 1` of a row of float16 or float32, zeros behind them."""
    kind, at = (HALVES, at + 2 * i) if half else (VECTOR, at + 4 * i)
    found = load(kind, at) if count == LANES else load_some(kind, count, at)
    return from_half(found) if half else found


def _begin(place: Place, q: Number, q_row: Number, start: Number, T: Number, scale: Number, width: int) -> None:
    """Lay out the scaled queries from `start` on, the last one in place of those behind it, and begin their sums."""
    wide = _wide(width)
    for r in loop(0, ROWS, LANES):
        to = 4 * (r // PANEL * PANEL * wide + r % PANEL)
        rows = [q + q_row * least(start + r + i, T - 1) for i in range(LANES)]
        for i, count in _numbers(width):
            for k, x in enumerate(transposed(*(_read(False, at, i, count) for at in rows))):
                store(x * scale, place.queries + to + LINE * (i + k))
        store(splat(VECTOR, LOWEST), place.tops + 4 * r)
        store(splat(VECTOR, 0.0), place.weights + 4 * r)
    for at in loop(place.sums, place.sums + 4 * ROWS * wide, 4 * LANES):
        store(splat(VECTOR, 0.0), at)


def _ranges(place: Place, ranges: Number, start: Number, T: Number, S: Number) -> tuple[Value, Value, Value, Value]:
    """Lay out what each query sees, and return the keys that one of them sees, and those that all see."""
    least_first, most_first, least_end, most_end = Cell(S), Cell(0), Cell(S), Cell(0)
    for r in loop(0, ROWS):
        first, end, at = Cell(0), Cell(S), ranges + 16 * least(start + r, T - 1)
        with when(ranges != 0):
            first.value, end.value = load(i64, at), load(i64, at + 8)
        store(convert(i32, first.value), place.first + 4 * r)
        store(convert(i32, end.value), place.end + 4 * r)
        least_first.value, most_first.value = least(least_first.value, first.value), most(most_first.value, first.value)
        least_end.value, most_end.value = least(least_end.value, end.value), most(most_end.value, end.value)
    return least_first.value, most_end.value, most_first.value, least_end.value


def _convert(place: Place, half: bool, key: Number, value: Number, row: Number, count: Number, width: int) -> None:
    """Write `count` keys and values as float32."""
    wide = _wide(width)
    for j in loop(0, count):
        for i, some in _numbers(width):
            store(_read(half, key + row * j, i, some), place.keys + 4 * (wide * j + i))
            x, to = _read(half, value + row * j, i, some), place.values + 4 * (KEYS * i + UNIT * j)
            store(lower(x), to)
            store(upper(x), to + STEP * KEYS)


def _multiply(sums: Sums, numbers: list[Number], step: int, lines: Number, count: Number) -> None:
    """Add `count` products: numbers, `step` bytes apart, times lines of three vectors."""
    for i in loop(0, count):
        x = [load(VECTOR, lines + LINE * i + 4 * LANES * c) for c in range(3)]
        for row, at in zip(sums, numbers, strict=True):
            one = splat(VECTOR, load(f32, at + step * i))
            for c in range(3):
                row[c].value = fma(one, x[c], row[c].value)


def _keep(sums: Sums, lines: Number) -> None:
    """Store sums as lines."""
    for r, row in enumerate(sums):
        for c in range(3):
            store(row[c].value, lines + LINE * r + 4 * LANES * c)


def _scores(place: Place, panel: Number, count: Number, width: int) -> None:
    """Write the scores of a panel's queries and `count` keys."""
    wide = _wide(width)
    queries, scores = place.queries + LINE * wide * panel, place.scores + LINE * KEYS * panel
    for k in loop(0, count, UNIT):
        sums = [[Cell(splat(VECTOR, 0.0)) for _ in range(3)] for _ in range(UNIT)]
        _multiply(sums, [place.keys + 4 * wide * (k + r) for r in range(UNIT)], 4, queries, width)
        _keep(sums, scores + LINE * k)


def _last(place: Place, panel: Number) -> Value:
    """Return the key behind the last that one of a panel's queries sees."""
    a, b, c = (load(INDICES, place.end + 4 * (PANEL * panel + LANES * c)) for c in range(3))
    return convert(i64, largest(larger(larger(a, b), c)))


def _hide(place: Place, panel: Number, key: Number, count: Number) -> None:
    """Make scores -inf where a query does not see the key, `key` and those behind it."""
    for j in loop(0, count):
        for c in range(3):
            near, at = 4 * (PANEL * panel + LANES * c), place.scores + LINE * (KEYS * panel + j) + 4 * LANES * c
            index = splat(INDICES, key + j)
            found = choose(less(index, load(INDICES, place.first + near)), NONE, load(VECTOR, at))
            store(choose(less(index, load(INDICES, place.end + near)), found, NONE), at)


def _softmax(place: Place, panel: Number, count: Number) -> list[Value]:
    """Turn scores into weights over the largest so far, and return the factors of older sums."""
    scores, factors = place.scores + LINE * KEYS * panel, []
    for c in range(3):
        near, at = 4 * (PANEL * panel + LANES * c), scores + 4 * LANES * c
        before = load(VECTOR, place.tops + near)
        top = Cell(before)
        for j in loop(0, count):
            top.value = larger(load(VECTOR, at + LINE * j), top.value)
        store(top.value, place.tops + near)
        factors.append(exp(before - top.value))
        weight = Cell(load(VECTOR, place.weights + near) * factors[c])
        for j in loop(0, count):
            x = exp(load(VECTOR, at + LINE * j) - top.value)
            store(x, at + LINE * j)
            weight.value = weight.value + x
        store(weight.value, place.weights + near)
    return factors


def _values(place: Place, panel: Number, count: Number, factors: list[Value], width: int) -> None:
    """Multiply the sums of a panel by the factors, and add weights times values."""
    wide = _wide(width)
    for i in loop(0, width, UNIT):
        to = place.sums + LINE * (wide * panel + i)
        sums = [[Cell(load(VECTOR, to + LINE * r + 4 * LANES * c) * factors[c]) for c in range(3)] for r in range(UNIT)]
        numbers = [place.values + 4 * (KEYS * i + r) for r in range(UNIT)]
        _multiply(sums, numbers, STEP, place.scores + LINE * KEYS * panel, count)
        _keep(sums, to)


def _finish(place: Place, out: Number, out_row: Number, rows: Number, width: int) -> None:
    """Write the sums of `rows` queries, divided by those of their weights."""
    wide = _wide(width)
    for r in loop(0, rows, LANES):
        at, weight = place.sums + 4 * (r // PANEL * PANEL * wide + r % PANEL), load(VECTOR, place.weights + 4 * r)
        for i, some in _numbers(width):
            for k, y in enumerate(transposed(*(load(VECTOR, at + LINE * (i + k)) / weight for k in range(LANES)))):
                with when(r + k < rows):
                    store_some(y, some, out + out_row * (r + k) + 4 * i)


def _attended(width: int, half: bool, args: Number, begin: Number, behind: Number) -> None:
    """Attend from some queries of a head: an item."""
    q, q_row, out, out_row, ranges, keys, values, row, apart, T, S, group, blocks, scale = words(args, HEAD)
    place = _place(_wide(width))
    for item in loop(begin, behind):
        head, start = item // blocks, ROWS * (item % blocks)
        rows = least(ROWS, T - start)
        _begin(place, q + 4 * width * head, q_row, start, T, real(scale), width)
        first, end, all_from, all_to = _ranges(place, ranges, start, T, S)
        for grid in loop(first - first % KEYS, end, KEYS):  # so a query does not depend on those beside it
            j = most(first, grid)
            at, count = apart * (head // group) + row * j, least(grid + KEYS, end) - j
            _convert(place, half, keys + at, values + at, row, count, width)
            for panel in loop(0, (rows + PANEL - 1) // PANEL):
                some = least(count, _last(place, panel) - j)
                with when(some > 0):
                    _scores(place, panel, some, width)
                    with when((j < all_from) | (j + some > all_to)):
                        _hide(place, panel, j, some)
                    _values(place, panel, some, _softmax(place, panel, some), width)
        _finish(place, out + out_row * start + 4 * width * head, out_row, rows, width)


@cache
def _kernel(width: int, half: bool) -> Kernel:
    """Make the kernel for heads of this size, and keys of float16 or float32."""
    return Kernel(f"vector_attention.attended_{width}" + "_half" * half, partial(_attended, width, half))


def by_vectors(q: Tensor, keys: Tensor, values: Tensor, ranges: Tensor | None, scale: float, threads: int) -> Tensor:
    """Attend by vectors: see `prompt_attention`, which also says what is asked of the arrays."""
    (T, H, dh), (S, Hkv, _) = q.shape, keys.shape
    out, blocks, half = torch.empty((T, H * dh)), -(-T // ROWS), keys.dtype == torch.float16
    row, apart = (stride * keys.element_size() for stride in keys.stride()[:2])
    seen = 0 if ranges is None else ranges.data_ptr()
    args = arguments(
        q.data_ptr(), 4 * q.stride(0), out.data_ptr(), 4 * H * dh, seen, keys.data_ptr(), values.data_ptr(), row, apart,
        T, S, H // Hkv, blocks, float(scale),
    )  # fmt: skip
    run(Launch(_kernel(dh, half), args, H * blocks, 1), threads=threads)
    return out
