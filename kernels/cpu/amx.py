"""Multiply tiles by AMX: 16 rows of 16 float32 += 16 rows of 32 bfloat16 times 32 x 16 of them.

Eight tiles of 16 rows of 64 bytes are registers of a thread, within `tiles()`; an operation names them by constants.
The second operand holds pairs: its row r, column c are the numbers 2r and 2r + 1 of column c. Numbers below 2^-126
count as 0.

On a processor without AMX the tiles lie on the kernel's stack and the operations are plain code with the same results:
so what is written for AMX is tested on any machine.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir

from . import simd
from .lanes import bits, choose, fma
from .llvm import I64, call, pointer
from .processor import OWN, TILES
from .simd import f32x16, i32, i32x16, splat
from .traced import Cell, Number, Value, builder, loop, otherwise, room, valued, when, write

REGISTERS = TILES and OWN
COUNT, ROW, TILE = 8, 64, 1024  # tiles; bytes of a row and of a tile
I8 = ir.IntType(8)
PALETTE = [1] + [0] * 15 + [ROW, 0] * COUNT + [0] * 16 + [16] * COUNT + [0] * 8
SIGN, EXPONENT, UPPER = -0x80000000, 0x7F800000, -0x10000
"""Bits of a float32: its sign, its exponent, and those that a bfloat16 has."""
PLACES: list[Value] = []
"""Where the tiles lie that are no registers, while a kernel has some."""


@contextmanager
def tiles() -> Iterator[None]:
    """Have eight tiles of zeros; every thread does so for itself. Without any, it is moved to another core faster."""
    if REGISTERS:
        place = ir.GlobalVariable(builder().module, ir.ArrayType(I8, len(PALETTE)), "tiles")
        place.linkage, place.global_constant = "internal", True
        place.initializer = ir.Constant(place.value_type, bytearray(PALETTE))
        call(builder(), "llvm.x86.ldtilecfg", ir.VoidType(), builder().bitcast(place, I8.as_pointer()))
        yield
        call(builder(), "llvm.x86.tilerelease", ir.VoidType())
        return
    PLACES.append(room(COUNT * TILE // 64))
    try:
        for tile in range(COUNT):
            zero(tile)
        yield
    finally:
        PLACES.pop()


def _instruction(name: str, *tiles: int, at: Number = None, stride: Number = None) -> None:
    """Add an instruction that names tiles, and where it has them, an address and the bytes between rows there."""
    memory = () if at is None else (pointer(builder(), I8, valued(at, I64)), valued(stride, I64))
    call(builder(), f"llvm.x86.{name}", ir.VoidType(), *(ir.Constant(I8, tile) for tile in tiles), *memory)


def _plainly(body: Callable[..., None], *args: Number) -> None:
    """Call a function that is written into the kernel's module once: LLVM would take long over so many copies of it."""
    module, name = builder().module, body.__name__
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * len(args)), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        write(function, body)
    builder().call(function, [valued(arg, I64) for arg in args])


def _fill(to: Number) -> None:
    """Fill a tile with zeros."""
    for row in loop(0, TILE, ROW):
        simd.store(splat(i32x16, 0), to + row)


def _copy(source: Number, stride: Number, to: Number, step: Number) -> None:
    """Copy 16 rows."""
    for row in loop(0, 16):
        simd.store(simd.load(i32x16, source + stride * row), to + step * row)


def zero(tile: int) -> None:
    """Fill a tile with zeros."""
    if REGISTERS:
        _instruction("tilezero", tile)
    else:
        _plainly(_fill, PLACES[-1] + TILE * tile)


def load(tile: int, address: Number, stride: Number) -> None:
    """Read 16 rows, `stride` bytes apart."""
    if REGISTERS:
        _instruction("tileloadd64", tile, at=address, stride=stride)
    else:
        _plainly(_copy, address, stride, PLACES[-1] + TILE * tile, ROW)


def store(tile: int, address: Number, stride: Number) -> None:
    """Write 16 rows, `stride` bytes apart."""
    if REGISTERS:
        _instruction("tilestored64", tile, at=address, stride=stride)
    else:
        _plainly(_copy, PLACES[-1] + TILE * tile, ROW, address, stride)


def dot(sums: int, a: int, b: int) -> None:
    """Add the product of two tiles of bfloat16 to one of float32."""
    if REGISTERS:
        _instruction("tdpbf16ps", sums, a, b)
    else:
        _plainly(_add_product, *(PLACES[-1] + TILE * tile for tile in (sums, a, b)))


def _add_product(out: Number, left: Number, right: Number) -> None:
    """Add a product as Intel's manual defines it, bit for bit.

    Products of the first numbers of pairs are added up in turn, and those of the second ones; then both sums; then what
    was there. Each is rounded once, and subnormal numbers are 0, before and after."""
    for row in loop(0, TILE, ROW):
        firsts, seconds = Cell(splat(f32x16, 0.0)), Cell(splat(f32x16, 0.0))
        for k in loop(0, 16):
            x, y = splat(i32x16, simd.load(i32, left + row + 4 * k)), simd.load(i32x16, right + ROW * k)
            firsts.value = normal(fma(_number(x << 16), _number(y << 16), firsts.value))
            seconds.value = normal(fma(_number(x & UPPER), _number(y & UPPER), seconds.value))
        before = normal(simd.load(f32x16, out + row))
        simd.store(normal(before + normal(firsts.value + seconds.value)), out + row)


def _number(word: Value) -> Value:
    return normal(bits(f32x16, word))


def normal(x: Value) -> Value:
    """Return 16 float32, of which subnormal ones become 0 with their sign."""
    word = bits(i32x16, x)
    return bits(f32x16, choose((word & EXPONENT) == 0, word & SIGN, word))


class TileOperand(NamedTuple):
    """Tiles in memory: an address, and the bytes from tile to tile, row to row, step to step, first to second term."""

    at: Number
    tile: Number
    row: Number
    step: Number
    term: Number = 0

    def load(self, to: int, step: Number, tile: int, term: int) -> None:
        """Load a tile."""
        load(to, self.at + self.step * step + self.tile * tile + self.term * term, self.row)


class TileProduct(NamedTuple):
    """How many tiles are multiplied at once: rows x columns, 1 or 2 each, of numbers in `terms` bfloat16 each.

    Of two terms the products of both first ones and of a first and a second one count."""

    rows: int
    columns: int
    terms: int

    def __call__(self, a: TileOperand, b: TileOperand, steps: Number, out: Number, stride: Number, more: Any) -> None:
        """Write sum over steps of a b, or add it to what is there where `more`, a Value or 0, is not 0.

        Out: rows `stride` bytes apart, a tile's columns behind those of the tile before."""
        places = [out + stride * 16 * r + ROW * c for r in range(self.rows) for c in range(self.columns)]
        begun = Value(valued(more, I64)) != 0
        with when(begun):
            for tile, place in enumerate(places):
                load(tile, place, stride)
        with otherwise(begun):
            for tile in range(len(places)):
                zero(tile)
        for step in loop(0, steps):
            self._add(a, b, step)
        for tile, place in enumerate(places):
            store(tile, place, stride)

    def _add(self, a: TileOperand, b: TileOperand, step: Number) -> None:
        """Add products of tiles: of two terms in an order in which one of both stays where it is."""
        before = (-1, -1)
        for i, j in ((0, 0),) if self.terms == 1 else ((1, 0), (0, 0), (0, 1)):
            for r in range(self.rows if before[0] != i else 0):
                a.load(4 + r, step, r, i)
            for c in range(self.columns):
                if before[1] != j:
                    b.load(6 + c, step, c, j)
                for r in range(self.rows):
                    dot(r * self.columns + c, 4 + r, 6 + c)
            before = i, j
