"""Multiply tiles by AMX: 16 rows of 16 float32 += 16 rows of 32 bfloat16 times 32 x 16 of them.

Eight tiles of 16 rows of 64 bytes are registers of a thread, from `configure` to `release`; an operation names them by
constants. The second operand holds pairs: its row r, column c are the numbers 2r and 2r + 1 of column c. Numbers below
2^-126 count as 0. Linux gives the registers to a process that asks: https://docs.kernel.org/arch/x86/xstate.html
"""

import ctypes
import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .simd import HOST, I64, LOWERED, SET, call, operation, pointer

I8 = ir.IntType(8)
ROW = 64  # bytes
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def _granted() -> bool:
    """Ask Linux for the tile registers."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


AVAILABLE = not LOWERED and SET == "avx512" and all(HOST.get(f"amx-{x}") for x in ("tile", "bf16")) and _granted()
INT8 = AVAILABLE and bool(HOST.get("amx-int8"))


@operation(lambda: types.void)
def configure(builder):
    """Make eight tiles of 16 rows of 64 bytes; every thread does so for itself."""
    palette = [1] + [0] * 15 + [ROW, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
    kind = ir.ArrayType(I8, len(palette))
    place = cgutils.global_constant(builder.module, "tiles", ir.Constant(kind, bytearray(palette)))
    call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), builder.bitcast(place, I8.as_pointer()))


@operation(lambda: types.void)
def release(builder):
    """Give the registers back: the thread is moved between processors faster without."""
    call(builder, "llvm.x86.tilerelease", ir.VoidType())


def zero(builder: Any, tile: int) -> None:
    """Fill a tile with zeros. To be used in an operation, as what follows."""
    call(builder, "llvm.x86.tilezero", ir.VoidType(), ir.Constant(I8, tile))


def load(builder: Any, tile: int, address: Any, stride: Any) -> None:
    """Read 16 rows, `stride` bytes apart."""
    call(builder, "llvm.x86.tileloadd64", ir.VoidType(), ir.Constant(I8, tile), pointer(builder, I8, address), stride)


def store(builder: Any, tile: int, address: Any, stride: Any) -> None:
    """Write 16 rows, `stride` bytes apart."""
    call(builder, "llvm.x86.tilestored64", ir.VoidType(), ir.Constant(I8, tile), pointer(builder, I8, address), stride)


def dot(builder: Any, sums: int, a: int, b: int) -> None:
    """Add the product of two tiles of bfloat16 to one of float32."""
    call(builder, "llvm.x86.tdpbf16ps", ir.VoidType(), *(ir.Constant(I8, tile) for tile in (sums, a, b)))


def dot_int8(builder: Any, sums: int, a: int, b: int) -> None:
    """Add the product of two tiles of int8, in fours, to one of int32."""
    call(builder, "llvm.x86.tdpbssd", ir.VoidType(), *(ir.Constant(I8, tile) for tile in (sums, a, b)))


Operand = tuple[Any, Any, Any, Any]
"""An address, the bytes from tile to tile, from row to row, and from first to second term."""


def _at(builder: Any, operand: Operand, tile: int, term: int) -> Any:
    address, tile_size, _, term_size = operand
    by_tile = builder.mul(tile_size, ir.Constant(I64, tile))
    return builder.add(address, builder.add(by_tile, builder.mul(term_size, ir.Constant(I64, term))))


def _add_step(builder: Any, rows: int, columns: int, terms: int, a: Operand, b: Operand) -> None:
    """Add products of tiles: of two terms in an order in which one of both stays where it is."""
    before = (-1, -1)
    for i, j in ((0, 0),) if terms == 1 else ((1, 0), (0, 0), (0, 1)):
        for r in range(rows if before[0] != i else 0):
            load(builder, 4 + r, _at(builder, a, r, i), a[2])
        for c in range(columns):
            if before[1] != j:
                load(builder, 6 + c, _at(builder, b, c, j), b[2])
            for r in range(rows):
                dot(builder, r * columns + c, 4 + r, 6 + c)
        before = i, j


def product(rows: int, columns: int, terms: int) -> Any:
    """Make a function that multiplies rows x columns tiles, 1 or 2 each, of numbers in `terms` bfloat16 each.

    Of two terms the products of both first ones and of a first and a second one count."""

    @operation(lambda *_: types.void)
    def product(builder, a, a_tile, a_stride, a_step, a_term, b, b_tile, b_step, b_term, steps, out, out_stride, more):
        """Write sum over steps of a b, or add it to what is there where `more` is not 0.

        a: tiles `a_tile` bytes apart, of rows `a_stride` apart; b: tiles of 1 KB; a step moves both on by so much. Out:
        rows `out_stride` bytes apart, a tile's columns behind those of the tile before."""
        none, places = ir.Constant(I64, 0), []
        for r in range(rows):
            row = builder.add(out, builder.mul(out_stride, ir.Constant(I64, 16 * r)))
            places += [builder.add(row, ir.Constant(I64, ROW * c)) for c in range(columns)]
        with builder.if_else(builder.icmp_signed("!=", more, none)) as (then, otherwise):
            with then:
                for tile, place in enumerate(places):
                    load(builder, tile, place, out_stride)
            with otherwise:
                for tile in range(len(places)):
                    zero(builder, tile)
        with cgutils.for_range_slice(builder, none, steps, ir.Constant(I64, 1)) as (step, _):
            first = builder.add(a, builder.mul(a_step, step)), a_tile, a_stride, a_term
            second = builder.add(b, builder.mul(b_step, step)), b_tile, ir.Constant(I64, ROW), b_term
            _add_step(builder, rows, columns, terms, first, second)
        for tile, place in enumerate(places):
            store(builder, tile, place, out_stride)

    return product
