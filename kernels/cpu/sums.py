"""Multiply rows of a matrix by rows of x: the loops that all types share. Traced (traced.py).

A group is 256 weights. Its codes are 8 vectors of int16, evens and odds of each 64 weights, as the codes of x lie
(activations.py). A few rows of the matrix are unpacked at a time and multiplied by every row of x, so they share the
reading of x, and all rows of x the unpacking. A row of the result is the same bits however many there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .activations import CODES, GROUP, SUMS
from .dots import dot16
from .lanes import convert, fma, total
from .processor import SET
from .scales import KEPT, Codes, split, spread, spread_at
from .simd import f32, f32x16, i16x32, i32x16, i64, load, prefetch, splat, store
from .traced import Cell, Number, Value, least, loop, room, when

FEW = 8
"""Rows of x that a launch may have."""
ONE, SOME = 2 if SET == "avx512" else 1, 4
"""Rows of the matrix that are done at once, with one row of x and with several: they share the loads of x, where there
are registers for that."""
ARGS = ("blocks", "bytes of a row", "K", "x", "bytes of a row of x", "rows of x", "out", "N", "bias", "add")


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel is given: `ARGS`, rows of the matrix. And whether x has one row only."""

    args: Number
    first: Number
    end: Number
    one: bool

    def __getitem__(self, name: str) -> Any:
        """Return an argument, an int64."""
        return load(i64, self.args + 8 * ARGS.index(name))


def finish(work: Work, t: Number, n: Number, lanes: Value) -> None:
    """Store element n of row t of the result: the lanes' sum, the bias, and what is to be added."""
    N, bias, add = work["N"], work["bias"], work["add"]
    y = Cell(total(lanes))
    with when(bias != 0):
        y.value = y.value + load(f32, bias + 4 * n)
    with when(add != 0):
        y.value = y.value + load(f32, add + 4 * (t * N + n))
    store(y.value, work["out"] + 4 * (t * N + n))


def nothing(row: Number, x: Number, lanes: Value) -> Value:
    """Leave the sums as they are: groups are all that a row has."""
    return lanes


def no_scales(row: Number, g: Number, i: int) -> None:
    """Prepare nothing."""


def ahead(row: Number, g: Number, distance: Number, group_bytes: int) -> None:
    """Fetch what is a few rows further: the processor does not look so far ahead itself."""
    for at in range(0, group_bytes, 64):
        prefetch(row + g * group_bytes + distance + at)


def product(
    work: Work,
    groups: Number,
    group_bytes: int,
    unpack: Callable[..., Any],
    add: Callable[..., list[Value]],
    rest: Callable[..., Value] = nothing,
    prepare: Callable[..., None] = no_scales,
) -> None:
    """Multiply rows `first` to `end - 1` of the matrix by every row of x.

    `unpack(row, g, i)` gives the weights of group g of a row at an address, which is row i of those done at once;
    `add(weights, x, g, lanes)` adds the products of those of some rows with group g of a row of x at an address to the
    lanes of each, so that they share the loads of x; `rest(row, x, lanes)` adds what is behind the groups to those of
    one. `prepare(row, g, i)` is called for each group before `unpack`, while the one before is done, for what would be
    waited for."""
    rows = one_row if work.one else some_rows
    rows(work, groups, group_bytes, unpack, add, rest, prepare)


def together(work: Work, n: Number, count: int) -> list[Value]:
    """Return the addresses of rows n to n + count - 1 of the matrix; behind the last one, that one again."""
    return [work["blocks"] + least(n + i, work.end - 1) * work["bytes of a row"] for i in range(count)]


def one_row(work, groups, group_bytes, unpack, add, rest, prepare):
    """Multiply by one row of x, with its sums in registers."""
    x = work["x"]
    for n in loop(work.first, work.end, ONE):
        matrix, sums = together(work, n, ONE), [Cell(splat(f32x16, 0.0)) for _ in range(ONE)]
        with when(groups > 0):
            for i, row in enumerate(matrix):
                prepare(row, 0, i)
        for g in loop(0, groups):
            for i, row in enumerate(matrix):
                ahead(row, g, ONE * work["bytes of a row"], group_bytes)
                prepare(row, least(g + 1, groups - 1), i)
            found = add([unpack(row, g, i) for i, row in enumerate(matrix)], x, g, [lanes.value for lanes in sums])
            for lanes, value in zip(sums, found, strict=True):
                lanes.value = value
        for i, row in enumerate(matrix):
            with when(n + i < work.end):
                finish(work, 0, n + i, rest(row, x, sums[i].value))


def some_rows(work, groups, group_bytes, unpack, add, rest, prepare):
    """Multiply by several rows of x, with their sums in memory."""
    x, x_bytes, rows, sums = work["x"], work["bytes of a row of x"], work["rows of x"], room(FEW * SOME)
    for n in loop(work.first, work.end, SOME):
        matrix = together(work, n, SOME)
        for t in loop(0, SOME * rows):
            store(splat(f32x16, 0.0), sums + 64 * t)
        with when(groups > 0):
            for i, row in enumerate(matrix):
                prepare(row, 0, i)
        for g in loop(0, groups):
            for i, row in enumerate(matrix):
                ahead(row, g, SOME * work["bytes of a row"], group_bytes)
                prepare(row, least(g + 1, groups - 1), i)
            weights = [unpack(row, g, i) for i, row in enumerate(matrix)]
            for t in loop(0, rows):
                places = [sums + 64 * (SOME * t + i) for i in range(SOME)]
                lanes = add(weights, x + t * x_bytes, g, [load(f32x16, place) for place in places])
                for at, y in zip(places, lanes, strict=True):  # stores behind all loads, which could be of the same
                    store(y, at)
        for t in loop(0, rows):
            for i, row in enumerate(matrix):
                with when(n + i < work.end):
                    finish(work, t, n + i, rest(row, x + t * x_bytes, load(f32x16, sums + 64 * (SOME * t + i))))


def each_64(x: Number, weights: list[Any], use: Callable[[int, int, Value, Value, Value, Value], None]) -> None:
    """Call `use(i, j, even, odd, x even, x odd)` for weights 64 j to 64 j + 63 of every row i: x is loaded once."""
    for j in range(4):
        x_even, x_odd = load(i16x32, x + 128 * j), load(i16x32, x + 128 * j + 64)
        for i, (pairs, *_) in enumerate(weights):
            even, odd = pairs[j]
            use(i, j, even, odd, x_even, x_odd)


def add_minima(weights: list[Any], sums: Number, lanes: list[Value]) -> list[Value]:
    """Add the minima of each row's group, where there are any, times the sums of x."""
    if weights[0][2] is None:
        return lanes
    return [fma(m, load(f32x16, sums), old) for (_, _, m), old in zip(weights, lanes, strict=True)]


def float_scales(
    codes: Callable[[Number], Sequence[Codes]],
    scales: Callable[[Number], Value | list[Value]],
    minima: Callable[[Number], Value] | None,
    group_bytes: int,
    work: Work,
    rest: Callable[..., Value] = nothing,
) -> None:
    """Do rows of a matrix with float32 scales. Of a group at an address, `codes` gives 4 times 64 codes, `scales` 8 or
    16 numbers, or 4 vectors of them that are spread already; `minima` what is to be
    added for each 16 weights, times the sum of x; `rest` as `product` has it."""
    groups = (work["K"] + GROUP - 1) // GROUP
    kept, lanes = room(2 * SOME), list[int]()

    def prepare(row: Number, g: Number, i: int) -> None:
        found = scales(row + g * group_bytes) if KEPT else None
        if isinstance(found, Value):
            lanes[:] = [found.lanes]
            store(found, kept + 64 * i + (g & 1) * (64 * SOME))

    def group(row: Number, g: Number, i: int) -> Any:
        at = row + g * group_bytes
        d = spread_at(kept + 64 * i + (g & 1) * (64 * SOME), lanes[0]) if lanes else scales(at)
        return [split(q) for q in codes(at)], spread(d) if isinstance(d, Value) else d, minima and minima(at)

    def add(weights: list[Any], x: Number, g: Number, lanes: list[Value]) -> list[Value]:
        zero, acc = splat(i32x16, 0), [splat(f32x16, 0.0)] * len(weights)

        def use(i: int, j: int, even: Value, odd: Value, x_even: Value, x_odd: Value) -> None:
            dots, d = convert(f32x16, dot16(dot16(zero, even, x_even), odd, x_odd)), weights[i][1][j]
            acc[i] = fma(dots, d, acc[i]) if j else dots * d

        each_64(x + g * CODES, weights, use)
        s = splat(f32x16, load(f32, x + groups * (CODES + SUMS) + 4 * g))
        found = [fma(new, s, old) for new, old in zip(acc, lanes, strict=True)]
        return add_minima(weights, x + groups * CODES + g * SUMS, found)

    product(work, work["K"] // GROUP, group_bytes, group, add, rest, prepare)
