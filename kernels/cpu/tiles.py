"""Multiply a few rows of x with a few rows of a matrix, group by group of its weights: the inside of `gemm`.

A **panel** is `WIDTH` rows of the matrix, a **tile** is `ROWS` rows of x. A panel is a record for each group of 16 or
32 weights: its codes, then a float32 scale for each row, then a minimum for each where the type has them. Codes lie in
quads of four bytes: 4 codes without sign, or 2 of 16 bits with one; the first quad of all rows, then their second. x
lies in the same quads, as numbers with sign. For every group x has, beside it, a scale for each row of the tile, and an
offset for each: what its codes add up to where the weight 0 has another code than 0, or for minima.

    y = sum over groups of  scale * x's scale * (offset + sum of code * x's code)          without minima
    y = sum over groups of  scale * x's scale * (sum of code * x's code) + minimum * offset
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from .dots import dot8, dot16, pairs8, pairs16
from .lanes import bits, convert, fma, join, shuffle_two
from .llvm import Kind
from .processor import INSTRUCTIONS, SET, VNNI
from .simd import f32, i32, i32x4, load, load_some, splat, store, store_some
from .traced import Number, Value, operation, pick, room

NARROW = (SET == "avx512" and VNNI) or SET == "avx2"
"""Whether codes of 8 bits are multiplied as such, four to a lane; else 16 bits, two to a lane."""
LANES, VECTORS, ROWS = {"avx512": (16, 2, 6), "avx2": (8, 2, 3), "portable": (4, 2, 2)}[SET]
"""Lanes of a vector, vectors of a panel, rows of a tile: as many sums as there are registers for."""
WIDTH = LANES * VECTORS
QUADS = 4 * WIDTH  # bytes of one quad of all rows of a panel
FLOATS, INTS, WORDS, OCTETS = (Kind(name, n * LANES) for name, n in (("f32", 1), ("i32", 1), ("i16", 2), ("i8", 4)))
ROW = 640
"""Bytes of scratch for a row of 256 weights: its codes, 16 scales, 16 minima."""
SCRATCH = WIDTH * ROW


@dataclass(frozen=True, slots=True)
class Form:
    """How codes of a type lie in a panel."""

    group: int  # weights that share a scale: 16 or 32
    minima: bool
    octets: bool  # codes of 8 bits
    run: int = 1  # quads whose products are added in 16 bits, where there is no VNNI

    @property
    def quads(self) -> int:
        return self.group // (4 if self.octets else 2)

    @property
    def record(self) -> int:
        """Return the bytes of a group in a panel."""
        return self.quads * QUADS + 4 * WIDTH * (1 + self.minima)


def each(kind: Kind, address: Number) -> Value:
    """Load a number, and fill a vector with it."""
    return splat(kind, load(i32 if kind.element == "i32" else f32, address))


@operation
def settled(builder: Any, *values: Any) -> Any:
    """Return values as they are in registers here: no sum is reordered, and no load goes past."""
    kind = ir.LiteralStructType([value.type for value in values])
    count = len(values)
    constraints = ",".join(["=v" if SET == "avx512" else "=x"] * count + [str(i) for i in range(count)] + ["~{memory}"])
    made = builder.asm(ir.FunctionType(kind, list(kind.elements)), "", constraints, values, True)
    return [builder.extract_value(made, i) for i in range(count)]


def in_order(sums: list[Value]) -> list[Value]:
    """Keep LLVM from loading more, before these sums are done, than there are registers for."""
    return settled(*sums) if SET == INSTRUCTIONS != "portable" else sums


def quad_sums(form: Form, sums: list[Value], record: Number, codes: Number, quads: range) -> list[Value]:
    """Add products of a few quads to the sums of a tile, which have 32 bits, or 16 with codes of 8 bits."""
    for quad in quads:
        w = [load(OCTETS, record + QUADS * quad + 4 * LANES * v) for v in range(VECTORS)]
        for row in range(ROWS):
            x = bits(OCTETS, each(INTS, codes + 4 * (ROWS * quad + row)))
            for v in range(VECTORS):
                i = row * VECTORS + v
                sums[i] = add_quad(form, sums[i], w[v], x)
        sums = in_order(sums)
    return sums


def add_quad(form: Form, sums: Value, w: Value, x: Value) -> Value:
    """Add products of a quad."""
    if not form.octets:
        return dot16(sums, bits(WORDS, w), bits(WORDS, x))
    return dot8(sums, w, x) if VNNI else sums + pairs8(w, x)


def products(form: Form, record: Number, codes: Number, beside: Number) -> list[Value]:
    """Add up the products of one group, with each row's offset.  -> i32 (LANES), ROWS times VECTORS of them"""
    known = form.minima or not form.octets
    offsets = [splat(INTS, 0) if known else each(INTS, beside + 4 * (ROWS + row)) for row in range(ROWS)]
    sums = [offset for offset in offsets for _ in range(VECTORS)]
    if VNNI or not form.octets:
        return quad_sums(form, sums, record, codes, range(form.quads))
    for first in range(0, form.quads, form.run):
        none = [splat(WORDS, 0)] * len(sums)
        words = quad_sums(form, none, record, codes, range(first, first + form.run))
        sums = [a + pairs16(b, splat(WORDS, 1)) for a, b in zip(sums, words, strict=True)]
    return sums


def step(form: Form, sums: Sequence[Value], record: Number, codes: Number, beside: Number) -> list[Value]:
    """Add the products of a group, which lies at three addresses, to the sums of a tile."""
    found, made = products(form, record, codes, beside), []
    places = [record + QUADS * form.quads + 4 * LANES * v for v in range(VECTORS)]
    scales = [load(FLOATS, place) for place in places]
    for row in range(ROWS):
        scale = each(FLOATS, beside + 4 * row)
        offset = each(FLOATS, beside + 4 * (ROWS + row)) if form.minima else None
        for v in range(VECTORS):
            i = row * VECTORS + v
            total = fma(convert(FLOATS, found[i]) * scales[v], scale, sums[i])
            made.append(total if offset is None else fma(load(FLOATS, places[v] + 4 * WIDTH), offset, total))
    return made


def sums_at(place: Number, stride: Number) -> list[Value]:
    """Load the sums of a tile, rows `stride` bytes apart."""
    return [load(FLOATS, place + stride * row + 4 * LANES * v) for row in range(ROWS) for v in range(VECTORS)]


def put(sums: Sequence[Value], place: Number, stride: Number) -> None:
    """Store the sums of a tile, rows `stride` bytes apart."""
    for i, lanes in enumerate(sums):
        store(lanes, place + stride * (i // VECTORS) + 4 * LANES * (i % VECTORS))


def copy(source: Number, stride: Number, target: Number, step: Number, rows: Number, columns: Number) -> None:
    """Copy a tile's first rows and columns: float32, rows `stride` bytes apart, to rows `step` bytes apart."""
    for row in range(ROWS):
        for v in range(VECTORS):
            count, at = pick(row < rows, columns - LANES * v, 0), 4 * LANES * v
            store_some(load_some(FLOATS, count, source + stride * row + at), count, target + step * row + at)


def turn(source: Number, stride: Number, target: Number, step: Number) -> None:
    """Lay rows side by side: 16 bytes of LANES rows, `stride` bytes apart, become 4 quads, `step` bytes apart."""
    for i, quads in enumerate(turned([load(i32x4, source + stride * row) for row in range(LANES)])):
        store(quads, target + step * i)


def turned(rows: list[Value]) -> list[Value]:
    """Lay vectors of 4 side by side: all first numbers, all second ones and so on."""
    a, b, c, d = (joined(rows[i::4]) for i in range(4))
    (a, c), (b, d) = (zipped(*pair, (0, 4, 1, 5), (2, 6, 3, 7)) for pair in ((a, b), (c, d)))
    return [*zipped(a, b, (0, 1, 4, 5), (2, 3, 6, 7)), *zipped(c, d, (0, 1, 4, 5), (2, 3, 6, 7))]


def joined(parts: list[Value]) -> Value:
    """Put vectors one behind another."""
    while len(parts) > 1:
        parts = [join(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def zipped(a: Value, b: Value, *orders: tuple[int, ...]) -> list[Value]:
    """Pick lanes of every 4 of a and the same 4 of b, those of b counted from 4, in each order."""
    n = a.lanes
    return [shuffle_two(*(i // 4 * n + i % 4 + at for at in range(0, n, 4) for i in order))(a, b) for order in orders]


def scratch() -> Value:
    """Return the address of `SCRATCH` bytes on the stack."""
    return room(SCRATCH // 64)
