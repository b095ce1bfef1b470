"""Hold vectors of 64 bytes: arithmetic by operators, loads and stores at addresses.

A kernel is written once, for vectors of 64 bytes; LLVM splits them where registers are shorter. An address is an int64;
`load(f32x16, address)` needs no alignment. lanes.py has conversions and operations on lanes, dots.py what processors
have instructions of their own for.
"""

from typing import Any

from llvmlite import ir

from .llvm import I32, Kind, call, filled, first_lanes, named, number, pointer
from .traced import f32, i64, operation

i8, i16, i32, f64 = Kind("i8"), Kind("i16"), Kind("i32"), Kind("f64")
i8x64, i16x32, i32x16, i64x8, f16x32, f32x16, f64x8 = (
    Kind(element, 512 // int(element[1:])) for element in ("i8", "i16", "i32", "i64", "f16", "f32", "f64")
)
i8x32, i16x16, i32x8, f16x16, f32x8 = (
    Kind(element, 256 // int(element[1:])) for element in ("i8", "i16", "i32", "f16", "f32")
)
i8x16, i16x8, i32x4, f16x8, f32x4 = (
    Kind(element, 128 // int(element[1:])) for element in ("i8", "i16", "i32", "f16", "f32")
)
__all__ = [
    "f16x8", "f16x16", "f16x32", "f32", "f32x4", "f32x8", "f32x16", "f64", "f64x8",
    "i8", "i8x16", "i8x32", "i8x64", "i16", "i16x8", "i16x16", "i16x32",
    "i32", "i32x4", "i32x8", "i32x16", "i64", "i64x8",
    "load", "load_some", "prefetch", "real", "splat", "store", "store_some", "words",
]  # fmt: skip


@operation
def load(builder: Any, kind: Kind, address: Any) -> Any:
    """Load a vector or a number of a kind."""
    return builder.load(pointer(builder, kind.llvm, address), align=1)


@operation
def store(builder: Any, value: Any, address: Any) -> None:
    """Store a vector or a number."""
    builder.store(value, pointer(builder, value.type, address), align=1)


def words(args: Any, count: int) -> list[Any]:
    """Read so many int64 that lie side by side: `x, out, n = words(args, 3)`."""
    return [load(i64, args + 8 * i) for i in range(count)]


@operation
def real(builder: Any, word: Any) -> Any:
    """Return the float64 whose bits these are, rounded to float32."""
    return builder.fptrunc(builder.bitcast(word, ir.DoubleType()), ir.FloatType())


@operation
def prefetch(builder: Any, address: Any) -> None:
    """Have 64 bytes brought to the second-level cache."""
    kind, numbers = ir.IntType(8), [ir.Constant(I32, number) for number in (0, 2, 1)]
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer(builder, kind, address), *numbers)


@operation
def load_some(builder: Any, kind: Kind, count: Any, address: Any) -> Any:
    """Load the first `count` elements, and zeros behind them. Nothing behind them is touched."""
    vector, name = kind.llvm, f"llvm.masked.load.{named(kind.llvm)}.p0"
    at, mask = pointer(builder, vector, address), first_lanes(builder, vector, count)
    return call(builder, name, vector, at, ir.Constant(I32, 1), mask, ir.Constant(vector, None))


@operation
def store_some(builder: Any, value: Any, count: Any, address: Any) -> None:
    """Store the first `count` elements."""
    name, at = f"llvm.masked.store.{named(value.type)}.p0", pointer(builder, value.type, address)
    call(builder, name, ir.VoidType(), value, at, ir.Constant(I32, 1), first_lanes(builder, value.type, count))


@operation
def splat(builder: Any, kind: Kind, value: Any) -> Any:
    """Fill a vector with a number."""
    return filled(builder, kind.llvm, number(builder, value, kind.llvm.element))
