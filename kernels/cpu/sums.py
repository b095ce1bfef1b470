"""Multiply rows of a matrix by rows of x: the loops that all types share. Traced (traced.py).

A group is 256 weights. Its codes are 8 vectors of int16, evens and odds of each 64 weights, as the codes of x lie
(activations.py). A few rows of the matrix are unpacked at a time and multiplied by every row of x, so they share the
reading of x, and all rows of x the unpacking. A row of the result is the same bits however many there are.
"""

from collections.abc import Callable
from typing import Any

from numba import types

from .activations import CODES, GROUP, SUMS
from .dots import dot16
from .lanes import bits, convert, fma, join, total
from .simd import SET, f32x16, i8x32, i8x64, i16x32, i32x16, load, load_some, prefetch, splat, store
from .traced import Cell, Number, Value, least, loop, otherwise, pick, room, when

FEW = 8
"""Rows of x that a launch may have."""
ONE, SOME = 2, 4
"""Rows of the matrix that are done at once, with one row of x and with several: they share the loads of x."""
ROOM = 320
"""Bytes for 8 blocks of 32 weights, a multiple of 64."""
ARGS = ("blocks", "bytes of a row", "K", "x", "bytes of a row of x", "rows of x", "out", "N", "bias", "add")


def arg(args: Number, i: int) -> Any:
    """Return argument i, an int64."""
    return load(types.int64, args + 8 * i)


def finish(args: Number, t: Number, n: Number, lanes: Value) -> None:
    """Store element n of row t of the result: the lanes' sum, the bias, and what is to be added."""
    N, bias, add = arg(args, 7), arg(args, 8), arg(args, 9)
    y = Cell(total(lanes))
    with when(bias != 0):
        y.value = y.value + load(types.float32, bias + 4 * n)
    with when(add != 0):
        y.value = y.value + load(types.float32, add + 4 * (t * N + n))
    store(y.value, arg(args, 6) + 4 * (t * N + n))


def nothing(row: Number, x: Number, lanes: Value) -> Value:
    """Leave the sums as they are: groups are all that a row has."""
    return lanes


def ahead(row: Number, g: Number, distance: Number, group_bytes: int) -> None:
    """Fetch what is a few rows further: the processor does not look so far ahead itself."""
    for at in range(0, group_bytes, 64):
        prefetch(row + g * group_bytes + distance + at)


def product(
    args: Number,
    first: Number,
    end: Number,
    groups: Number,
    group_bytes: int,
    unpack: Callable[..., Any],
    add: Callable[..., Value],
    rest: Callable[..., Value] = nothing,
) -> None:
    """Multiply rows `first` to `end - 1` of the matrix by every row of x.

    `unpack(row, g, i)` gives the weights of group g of a row at an address, which is row i of those done at once;
    `add(weights, x, g, lanes)` adds their products with group g of a row of x at an address, `rest(row, x, lanes)` what
    is behind the groups."""
    with when(arg(args, 5) == 1):
        one_row(args, first, end, groups, group_bytes, unpack, add, rest)
    with otherwise(arg(args, 5) == 1):
        some_rows(args, first, end, groups, group_bytes, unpack, add, rest)


def together(args: Number, n: Number, end: Number, count: int) -> list[Value]:
    """Return the addresses of rows n to n + count - 1 of the matrix; behind the last one, that one again."""
    return [arg(args, 0) + least(n + i, end - 1) * arg(args, 1) for i in range(count)]


def one_row(args, first, end, groups, group_bytes, unpack, add, rest):
    """Multiply by one row of x, with its sums in registers."""
    x = arg(args, 3)
    for n in loop(first, end, ONE):
        matrix, sums = together(args, n, end, ONE), [Cell(splat(f32x16, 0.0)) for _ in range(ONE)]
        for g in loop(0, groups):
            for i, row in enumerate(matrix):
                ahead(row, g, ONE * arg(args, 1), group_bytes)
                sums[i].value = add(unpack(row, g, i), x, g, sums[i].value)
        for i, row in enumerate(matrix):
            with when(n + i < end):
                finish(args, 0, n + i, rest(row, x, sums[i].value))


def some_rows(args, first, end, groups, group_bytes, unpack, add, rest):
    """Multiply by several rows of x, with their sums in memory."""
    x, x_bytes, rows, sums = arg(args, 3), arg(args, 4), arg(args, 5), room(FEW * SOME)
    for n in loop(first, end, SOME):
        matrix = together(args, n, end, SOME)
        for t in loop(0, SOME * rows):
            store(splat(f32x16, 0.0), sums + 64 * t)
        for g in loop(0, groups):
            for row in matrix:
                ahead(row, g, SOME * arg(args, 1), group_bytes)
            weights = [unpack(row, g, i) for i, row in enumerate(matrix)]
            for t in loop(0, rows):
                places = [sums + 64 * (SOME * t + i) for i in range(SOME)]
                lanes = [add(weights[i], x + t * x_bytes, g, load(f32x16, places[i])) for i in range(SOME)]
                for at, y in zip(places, lanes, strict=True):  # stores behind all loads, which could be of the same
                    store(y, at)
        for t in loop(0, rows):
            for i, row in enumerate(matrix):
                with when(n + i < end):
                    finish(args, t, n + i, rest(row, x + t * x_bytes, load(f32x16, sums + 64 * (SOME * t + i))))


def words(codes: Value) -> tuple[Value, Value]:
    """Widen 64 int8 codes to int16: the 32 at even places, and the 32 at odd ones."""
    pairs = bits(i16x32, codes)
    return pairs << 8 >> 8, pairs >> 8


def pair(low: Number, high: Number) -> Value:
    """Put 32 bytes at two addresses in one vector."""
    return join(load(i8x32, low), load(i8x32, high))


def dot64(acc: Value, even: Value, odd: Value, x: Number) -> Value:
    """Add products of 64 codes with those of x at an address, in 16 lanes of int32, one for each 4 codes."""
    return dot16(dot16(acc, even, load(i16x32, x)), odd, load(i16x32, x + 64))


def whole_scales(
    unpack: Callable[..., Any],
    minima: Callable[..., Any] | None,
    block_bytes: int,
    args: Number,
    first: Number,
    end: Number,
    *,
    parts: int = 1,
) -> None:
    """Do rows of a matrix whose blocks are groups: codes have whole scales, and a block has one float32 factor.

    `unpack(address)` gives the words, times their scales, and the factor; `minima(address)` what is to be added for
    each 16 weights, a multiple of the sum of x; it may be None. Words may have 12 bits and a sign; in two parts, which
    are added as float32, 13."""
    groups = arg(args, 2) // GROUP

    def block(row: Number, g: Number, i: int) -> Any:
        at = row + g * block_bytes
        return *unpack(at), minima and minima(at)

    def add(weights: Any, x: Number, g: Number, lanes: Value) -> Value:
        w, d, m = weights
        codes, acc = x + g * CODES, [splat(i32x16, 0)] * 2  # two sums: neither waits for the other
        for i in range(4):
            acc[i // 2] = dot64(acc[i // 2], w[2 * i], w[2 * i + 1], codes + 128 * i)
        s = splat(f32x16, load(types.float32, x + groups * (CODES + SUMS) + 4 * g))
        dots = [convert(f32x16, dots) for dots in (acc if parts == 2 else [acc[0] + acc[1]])]
        lanes = fma(sum(dots[1:], dots[0]) * s, splat(f32x16, d), lanes)
        return lanes if m is None else fma(m, load(f32x16, x + groups * CODES + g * SUMS), lanes)

    product(args, first, end, groups, block_bytes, block, add)


def filled_up(row: Number, whole: Number, row_bytes: Number, room: Number) -> None:
    """Copy the bytes of a row's last blocks, behind `whole` bytes, to a place where zeros follow them."""
    if SET == "avx512":  # has loads of some bytes
        for at in range(0, ROOM, 64):
            store(load_some(i8x64, row_bytes - whole - at, row + whole + at), room + at)
        return
    for at in range(0, ROOM, 64):
        store(splat(i8x64, 0), room + at)
    for i in loop(whole, row_bytes):
        store(load(types.int8, row + i), room + (i - whole))


def float_scales(
    unpack: Callable[..., Any],
    minima: Callable[..., Any] | None,
    block_bytes: int,
    args: Number,
    first: Number,
    end: Number,
) -> None:
    """Do rows of a matrix with a block for 32 weights, 8 blocks at a time, the last ones filled up with zeros.

    `unpack(address)` gives the words of 8 blocks and their scales, 4 vectors, a scale for each 4 weights; `minima` as
    above."""
    row_bytes, K = arg(args, 1), arg(args, 2)
    whole, groups, last = K // GROUP, (K + GROUP - 1) // GROUP, room(SOME * ROOM // 64)

    def blocks(row: Number, g: Number, i: int) -> Any:
        step, copy = 8 * block_bytes, last + i * ROOM
        with when(g == whole):
            filled_up(row, g * step, row_bytes, copy)
        at = pick(g == whole, copy, row + g * step)
        return *unpack(at), minima and minima(at)

    def add(weights: Any, x: Number, g: Number, lanes: Value) -> Value:
        w, d, m = weights
        codes, zero, acc = x + g * CODES, splat(i32x16, 0), splat(f32x16, 0.0)
        for i in range(4):
            dots = convert(f32x16, dot64(zero, w[2 * i], w[2 * i + 1], codes + 128 * i))
            acc = fma(dots, d[i], acc) if i else dots * d[i]
        s = load(types.float32, x + groups * (CODES + SUMS) + 4 * g)
        lanes = fma(acc, splat(f32x16, s), lanes)
        return lanes if m is None else fma(m, load(f32x16, x + groups * CODES + g * SUMS), lanes)

    product(args, first, end, groups, 8 * block_bytes, blocks, add)
