"""Multiply a few rows of x with a few rows of a matrix, group by group of its weights: the inside of `gemm`.

A **panel** is `WIDTH` rows of the matrix, a **tile** is `ROWS` rows of x. A panel is a record for each group of 16 or
32 weights: its codes, then a float32 scale for each row, then a minimum for each where the type has them. Codes lie in
quads of four bytes: 4 codes without sign, or 2 of 16 bits with one; the first quad of all rows, then their second. x
lies in the same quads, as numbers with sign. For every group x has, beside it, a scale for each row of the tile, and an
offset for each: what its codes add up to where the weight 0 has another code than 0, or for minima.

    y = sum over groups of  scale * x's scale * (offset + sum of code * x's code)          without minima
    y = sum over groups of  scale * x's scale * (sum of code * x's code) + minimum * offset
"""

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import simd
from .dots import _dot8, _dot16, _pairs8, _pairs16
from .simd import ELEMENTS, I32, I64, SET, VNNI, Vec, call, constant, filled, named, operation, pointer, shuffled

NARROW = (SET == "avx512" and VNNI) or SET == "avx2"
"""Whether codes of 8 bits are multiplied as such, four to a lane; else 16 bits, two to a lane."""
LANES, VECTORS, ROWS = {"avx512": (16, 2, 6), "avx2": (8, 1, 4), "portable": (4, 2, 2)}[SET]
"""Lanes of a vector, vectors of a panel, rows of a tile: as many sums as there are registers for."""
WIDTH = LANES * VECTORS
QUADS = 4 * WIDTH  # bytes of one quad of all rows of a panel
FLOAT = ELEMENTS["f32"]
FLOATS, INTS, OCTETS = (
    ir.VectorType(ELEMENTS[name], n) for name, n in (("f32", LANES), ("i32", LANES), ("i8", 4 * LANES))
)
ROW = 640
"""Bytes of scratch for a row of 256 weights: its codes, 16 scales, 16 minima."""
SCRATCH = WIDTH * ROW
SUMS = types.UniTuple(Vec("f32", LANES), ROWS * VECTORS)


@dataclass(frozen=True, slots=True)
class Form:
    """How codes of a type lie in a panel."""

    group: int  # weights that share a scale: 16 or 32
    minima: bool
    octets: bool  # codes of 8 bits

    @property
    def quads(self) -> int:
        return self.group // (4 if self.octets else 2)

    @property
    def fitting(self) -> int:
        """Return how many quads are added in 16 bits: without VNNI, codes of 5 bits, or 6 where 16 share a scale."""
        return 1 if VNNI or not self.octets else self.quads // 2

    @property
    def record(self) -> int:
        """Return the bytes of a group in a panel."""
        return self.quads * QUADS + 4 * WIDTH * (1 + self.minima)


def _at(builder: Any, address: Any, offset: int, kind: ir.Type) -> Any:
    """Load from a constant offset behind an address."""
    return builder.load(pointer(builder, kind, builder.add(address, ir.Constant(I64, offset))), align=1)


def _each(builder: Any, address: Any, offset: int, kind: ir.Type = FLOAT) -> Any:
    """Load a number, and fill a vector with it."""
    return filled(builder, ir.VectorType(kind, LANES), _at(builder, address, offset, kind))


def _quad(builder: Any, sums: Any, codes: Any, x: Any, octets: bool) -> Any:
    """Add the products of a quad to sums, by one instruction where there is one.  -> i32 (LANES)"""
    halves = ir.VectorType(ELEMENTS["i16"], 2 * LANES)
    if octets:
        return _dot8(builder, sums, codes, x)
    return _dot16(builder, sums, builder.bitcast(codes, halves), builder.bitcast(x, halves))


def _run(builder: Any, sums: Any, codes: list[Any], x: list[Any], octets: bool) -> Any:
    """Add the products of a few quads to sums; without VNNI in 16 bits first, where they fit."""
    if VNNI or not octets:
        for a, b in zip(codes, x, strict=True):
            sums = _quad(builder, sums, a, b, octets)
        return sums
    pairs = _pairs8(builder, codes[0], x[0])
    for a, b in zip(codes[1:], x[1:], strict=True):
        pairs = builder.add(pairs, _pairs8(builder, a, b))
    return builder.add(sums, _pairs16(builder, pairs, constant(pairs.type, 1)))


def step(form: Form) -> Any:
    """Make a function that adds the products of one group to the sums of a tile.

    (sums, address of the record, of x's codes, of x's scales and offsets) -> sums"""
    quads, room = form.quads, form.fitting

    def offsets(builder: Any, beside: Any) -> list[Any]:
        if form.minima or not form.octets:
            return [constant(INTS, 0)] * ROWS
        return [_each(builder, beside, 4 * (ROWS + row), I32) for row in range(ROWS)]

    def products(builder: Any, record: Any, codes: Any, beside: Any) -> list[list[Any]]:
        sums = [[offset] * VECTORS for offset in offsets(builder, beside)]
        for first in range(0, quads, room):
            run = range(first, first + room)
            w = [[_at(builder, record, QUADS * quad + 4 * LANES * v, OCTETS) for quad in run] for v in range(VECTORS)]
            for row in range(ROWS):
                x = [builder.bitcast(_each(builder, codes, 4 * (ROWS * quad + row), I32), OCTETS) for quad in run]
                sums[row] = [_run(builder, sums[row][v], w[v], x, form.octets) for v in range(VECTORS)]
        return sums

    @operation(lambda sums, record, codes, beside: sums)
    def step(builder, sums, record, codes, beside):
        """Add the products of one group."""
        found, made = products(builder, record, codes, beside), []
        places = [QUADS * quads + 4 * LANES * v for v in range(VECTORS)]
        scales = [_at(builder, record, place, FLOATS) for place in places]
        minima = [_at(builder, record, place + 4 * WIDTH, FLOATS) for place in places if form.minima]
        for row in range(ROWS):
            scale = _each(builder, beside, 4 * row)
            for v in range(VECTORS):
                total = builder.extract_value(sums, row * VECTORS + v)
                total = _fma(builder, builder.sitofp(found[row][v], FLOATS), builder.fmul(scales[v], scale), total)
                if form.minima:
                    total = _fma(builder, minima[v], _each(builder, beside, 4 * (ROWS + row)), total)
                made.append(total)
        return cgutils.pack_array(builder, made)

    return step


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c; the set `portable` may have no instruction for it, and then rounds twice."""
    name = "fma" if SET != "portable" else "fmuladd"
    return call(builder, f"llvm.{name}.{named(FLOATS)}", FLOATS, a, b, c)


@operation(lambda: SUMS)
def nothing(builder):
    """Begin sums."""
    return cgutils.pack_array(builder, [constant(FLOATS, 0.0)] * (ROWS * VECTORS))


@operation(lambda *_: types.void)
def put(builder, sums, out, stride, rows, columns):
    """Store the sums of the first rows of x and of the matrix.  -> out (rows, columns), rows `stride` bytes apart"""
    for row in range(ROWS):
        inside = builder.icmp_signed("<", ir.Constant(I64, row), rows)
        for v in range(VECTORS):
            count = builder.sub(columns, ir.Constant(I64, LANES * v))
            count = builder.select(inside, count, ir.Constant(I64, 0))
            place = builder.add(builder.mul(stride, ir.Constant(I64, row)), ir.Constant(I64, 4 * LANES * v))
            at, mask = pointer(builder, FLOATS, builder.add(out, place)), simd.first_lanes(builder, FLOATS, count)
            value = builder.extract_value(sums, row * VECTORS + v)
            name = f"llvm.masked.store.{named(FLOATS)}.p0"
            call(builder, name, ir.VoidType(), value, at, ir.Constant(I32, 4), mask)


@operation(lambda *_: types.void)
def turn(builder, source, stride, target, step):
    """Lay rows side by side: 16 bytes of LANES rows, `stride` bytes apart, become 4 quads, `step` bytes apart."""
    rows = [builder.add(source, builder.mul(stride, ir.Constant(I64, row))) for row in range(LANES)]
    loaded = [_at(builder, row, 0, ir.VectorType(I32, 4)) for row in rows]
    by_four = [_joined(builder, loaded[i::4]) for i in range(4)]
    (a, c), (b, d) = (_zipped(builder, *by_four[i : i + 2], (0, 4, 1, 5), (2, 6, 3, 7)) for i in (0, 2))
    quads = (*_zipped(builder, a, b, (0, 1, 4, 5), (2, 3, 6, 7)), *_zipped(builder, c, d, (0, 1, 4, 5), (2, 3, 6, 7)))
    for i, quad in enumerate(quads):
        place = builder.add(target, builder.mul(step, ir.Constant(I64, i)))
        builder.store(quad, pointer(builder, INTS, place), align=4)


def _joined(builder: Any, parts: list[Any]) -> Any:
    """Put vectors one behind another."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [shuffled(builder, a, b, range(2 * a.type.count)) for a, b in pairs]
    return parts[0]


def _zipped(builder: Any, a: Any, b: Any, *orders: tuple[int, ...]) -> list[Any]:
    """Pick lanes of every 4 of a and the same 4 of b, those of b counted from 4, in each order."""
    n = a.type.count
    return [
        shuffled(builder, a, b, [i // 4 * n + i % 4 + at for at in range(0, n, 4) for i in order]) for order in orders
    ]


@operation(lambda: types.int64)
def scratch(builder):
    """Return the address of `SCRATCH` bytes on the stack."""
    with builder.goto_entry_block():
        return builder.ptrtoint(builder.alloca(ir.ArrayType(ELEMENTS["i8"], SCRATCH)), I64)
