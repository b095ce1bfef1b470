"""Multiply integers and add neighbours, and look bytes up: what has instructions of its own in each set.

Integer sums are exact, so every set gives the same. `dot16` is the one that products with quantised matrices use:
16-bit lanes never overflow the 32 bits of two products. `dot8` has bounds, see there.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir

from .llvm import ELEMENTS, I32, call, constant, shuffled
from .processor import GALOIS, INSTRUCTIONS, VNNI
from .traced import operation

BYTES_NAMED = llvmlite.binding.llvm_version_info[0] >= 22  # LLVM 22: these take bytes and words, not i32 lanes


def _halves(builder: Any, x: Any) -> list[Any]:
    count = x.type.count // 2
    return [shuffled(builder, x, x, range(at, at + count)) for at in (0, count)]


def _by_halves(builder: Any, build: Any, *args: Any) -> Any:
    """Apply `build` to the lower and to the upper halves of vectors, and join what comes out."""
    low, high = (build(*half) for half in zip(*(_halves(builder, arg) for arg in args), strict=True))
    return shuffled(builder, low, high, range(2 * low.type.count))


def _vnni(builder: Any, name: str, acc: Any, a: Any, b: Any) -> Any:
    a, b = (x if BYTES_NAMED else builder.bitcast(x, acc.type) for x in (a, b))
    return call(builder, f"llvm.x86.avx512.{name}.{32 * acc.type.count}", acc.type, acc, a, b)


def _neighbours(builder: Any, a: Any, b: Any, kind: ir.VectorType, unsigned: bool = False) -> Any:
    """Multiply lanes, widened to `kind`'s element, and add neighbours: plain vector code."""
    wide = ir.VectorType(kind.element, a.type.count)
    product = builder.mul((builder.zext if unsigned else builder.sext)(a, wide), builder.sext(b, wide))
    even, odd = (shuffled(builder, product, product, range(at, wide.count, 2)) for at in (0, 1))
    return builder.add(even, odd)


def _pairs16(builder: Any, a: Any, b: Any) -> Any:
    """Return a[2i] * b[2i] + a[2i + 1] * b[2i + 1]: <2n x i16> -> <n x i32>"""
    kind = ir.VectorType(I32, a.type.count // 2)
    if INSTRUCTIONS == "avx512" and kind.count == 16:
        return call(builder, "llvm.x86.avx512.pmaddw.d.512", kind, a, b)
    if INSTRUCTIONS != "portable" and kind.count == 8:
        return call(builder, "llvm.x86.avx2.pmadd.wd", kind, a, b)
    if INSTRUCTIONS == "avx2" and kind.count == 16:
        return _by_halves(builder, lambda a, b: _pairs16(builder, a, b), a, b)
    return _neighbours(builder, a, b, kind)


def _dot16(builder: Any, acc: Any, a: Any, b: Any) -> Any:
    if VNNI and acc.type.count * 32 == (512 if INSTRUCTIONS == "avx512" else 256):
        return _vnni(builder, "vpdpwssd", acc, a, b)
    if VNNI and acc.type.count == 16:
        return _by_halves(builder, lambda *x: _dot16(builder, *x), acc, a, b)
    return builder.add(acc, _pairs16(builder, a, b))


def _pairs8(builder: Any, codes: Any, x: Any) -> Any:
    """Return codes[2i] * x[2i] + codes[2i + 1] * x[2i + 1], codes without sign: <2n x i8> -> <n x i16>"""
    kind = ir.VectorType(ELEMENTS["i16"], codes.type.count // 2)
    if INSTRUCTIONS == "avx512" and kind.count == 32:
        return call(builder, "llvm.x86.avx512.pmaddubs.w.512", kind, codes, x)
    if INSTRUCTIONS != "portable" and kind.count == 16:
        return call(builder, "llvm.x86.avx2.pmadd.ub.sw", kind, codes, x)
    if INSTRUCTIONS == "avx2" and kind.count == 32:
        return _by_halves(builder, lambda a, b: _pairs8(builder, a, b), codes, x)
    return _neighbours(builder, codes, x, kind, unsigned=True)


def _dot8(builder: Any, acc: Any, codes: Any, x: Any) -> Any:
    if VNNI and acc.type.count * 32 == (512 if INSTRUCTIONS == "avx512" else 256):
        return _vnni(builder, "vpdpbusd", acc, codes, x)
    if VNNI and acc.type.count == 16:
        return _by_halves(builder, lambda *a: _dot8(builder, *a), acc, codes, x)
    pairs = _pairs8(builder, codes, x)
    return builder.add(acc, _pairs16(builder, pairs, constant(pairs.type, 1)))


@operation
def pairs16(builder, a, b):
    """Multiply int16 lanes and add neighbours.  i16 (2n), i16 (2n) -> i32 (n)"""
    return _pairs16(builder, a, b)


@operation
def dot16(builder, acc, a, b):
    """Add products of int16 lanes, two to a lane.  i32 (n), i16 (2n), i16 (2n) -> i32 (n)"""
    return _dot16(builder, acc, a, b)


@operation
def pairs8(builder, codes, x):
    """Multiply uint8 by int8 lanes and add neighbours; a sum beyond 16 bits is not defined.  (2n) (2n) -> i16 (n)"""
    return _pairs8(builder, codes, x)


@operation
def dot8(builder, acc, codes, x):
    """Add products of uint8 by int8 lanes, four to a lane.  i32 (n), i8 (4n), i8 (4n) -> i32 (n)

    The sum of two products must fit 16 bits: codes up to 128 with x above -128, or any with smaller x. Where `EXACT8`
    is set, any codes and x will do."""
    return _dot8(builder, acc, codes, x)


EXACT8 = VNNI


@operation
def nibbles(builder, packed):
    """Return the low halves of the first 32 bytes and the high halves of the last 32.  i8 (64) -> i8 (64)

    Galois fields have an instruction that takes each bit of a byte from where a matrix says: shift and mask in one."""
    if GALOIS:
        rows = [0, 0, 0, 0, 8, 4, 2, 1] * 4 + [0, 0, 0, 0, -128, 64, 32, 16] * 4
        matrix, none = constant(packed.type, rows), ir.Constant(ELEMENTS["i8"], 0)
        return call(builder, "llvm.x86.vgf2p8affineqb.512", packed.type, packed, matrix, none)
    words = ir.VectorType(ELEMENTS["i16"], 32)
    shifted = builder.lshr(builder.bitcast(packed, words), constant(words, [0] * 16 + [4] * 16))
    return builder.and_(builder.bitcast(shifted, packed.type), constant(packed.type, 15))


@operation
def upper_product(builder, a, b):
    """Return the upper 16 bits of products of int16 lanes without sign."""
    wide = ir.VectorType(I32, a.type.count)
    product = builder.mul(builder.zext(a, wide), builder.zext(b, wide))
    return builder.trunc(builder.lshr(product, constant(wide, 16)), a.type)


@operation
def look_up(builder, table, index):
    """Look up bytes in 16 bytes: result[i] = table[index[i]], index 0..15.  table i8 (16), index i8 (n)"""
    n = index.type.count
    repeated = shuffled(builder, table, table, [i % 16 for i in range(n)])
    return _look_up(builder, repeated, index)


@operation
def look_up_near(builder, table, index):
    """Look up bytes in the 16 bytes of the table that lie where the index does: one table for each 16 lanes."""
    return _look_up(builder, table, index)


def _look_up(builder: Any, table: Any, index: Any) -> Any:
    n = index.type.count
    if INSTRUCTIONS != "portable" and n == 16:
        return call(builder, "llvm.x86.ssse3.pshuf.b.128", index.type, table, index)
    if INSTRUCTIONS != "portable" and n == 32:
        return call(builder, "llvm.x86.avx2.pshuf.b", index.type, table, index)
    if INSTRUCTIONS == "avx512" and n == 64:
        return call(builder, "llvm.x86.avx512.pshuf.b.512", index.type, table, index)
    if INSTRUCTIONS == "avx2" and n == 64:
        return _by_halves(builder, lambda a, b: _look_up(builder, a, b), table, index)
    made = ir.Constant(index.type, ir.Undefined)
    for i in range(n):
        at = builder.or_(
            builder.zext(builder.extract_element(index, ir.Constant(I32, i)), I32), ir.Constant(I32, i & ~15)
        )
        made = builder.insert_element(made, builder.extract_element(table, at), ir.Constant(I32, i))
    return made
