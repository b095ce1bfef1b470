"""Compute with the lanes of a vector: convert, compare, choose, shuffle, add up.

Nothing here depends on the instruction set, but half precision: a processor without instructions for it would call a
library, so bits are moved instead. Results of float32 operations are rounded once each, apart from `fma` where there
is no such instruction (set `portable`): there the product is rounded too.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .llvm import ELEMENTS, I32, Kind, call, constant, filled, first_lanes, named, number, opaque, shuffled
from .processor import INSTRUCTIONS
from .traced import Number, Value, lanewise, operation, pick

HALF = INSTRUCTIONS != "portable"  # conversions of half precision are instructions


@operation
def bits(builder, kind, value):
    """Take the bits of a vector for those of another type."""
    return builder.bitcast(value, kind.llvm)


def _converted(builder: Any, value: Any, to: Any, signed: bool) -> Any:
    """Convert LLVM vectors or numbers, from float to integer towards zero."""
    element, had = getattr(to, "element", to), getattr(value.type, "element", value.type)
    whole, was_whole = isinstance(element, ir.IntType), isinstance(had, ir.IntType)
    if whole and was_whole:
        longer = element.width - had.width
        extended = builder.sext if signed else builder.zext
        return value if not longer else extended(value, to) if longer > 0 else builder.trunc(value, to)
    if was_whole:
        return (builder.sitofp if signed else builder.uitofp)(value, to)
    if whole:
        return (builder.fptosi if signed else builder.fptoui)(value, to)
    order = [ELEMENTS[name] for name in ("f16", "f32", "f64")]
    longer = order.index(element) - order.index(had)
    return value if not longer else builder.fpext(value, to) if longer > 0 else builder.fptrunc(value, to)


@operation
def convert(builder, kind, value):
    """Convert a number or every lane: integers with their sign or cut short, floats rounded, to integers towards zero.

    Half precision is converted by `from_half` and `to_half`."""
    return _converted(builder, value, kind.llvm, True)


@operation
def convert_unsigned(builder, kind, value):
    """Convert a number or every lane, integers without sign."""
    return _converted(builder, value, kind.llvm, False)


def half_to_float(builder: Any, words: Any) -> Any:
    """Convert <n x i16>, the bits of half precision, to <n x float>, exactly.

    Bit by bit: the 15 lower bits, moved up by 13, are the number over 2^112, also where it is subnormal."""
    n = words.type.count
    vec, whole = ir.VectorType(ELEMENTS["f32"], n), ir.VectorType(I32, n)
    if HALF:
        return builder.fpext(builder.bitcast(words, ir.VectorType(ELEMENTS["f16"], n)), vec)
    wide = builder.zext(words, whole)
    moved = builder.shl(builder.and_(wide, constant(whole, 0x7FFF)), constant(whole, 13))
    scaled = builder.bitcast(builder.fmul(builder.bitcast(moved, vec), constant(vec, 2.0**112)), whole)
    special = builder.icmp_unsigned(">=", moved, constant(whole, 0x0F800000))
    scaled = builder.select(special, builder.or_(moved, constant(whole, 0x7F800000)), scaled)
    sign = builder.shl(builder.and_(wide, constant(whole, 0x8000)), constant(whole, 16))
    return builder.bitcast(builder.or_(scaled, sign), vec)


@operation
def from_half(builder, words):
    """Convert int16 lanes, the bits of half precision, to float32, exactly."""
    return half_to_float(builder, words)


@operation
def half_number(builder, word):
    """Convert an int16, the bits of a half-precision number, to float32, exactly.

    By way of an integer: an instruction that puts 16 bits into a vector would wait for what the vector had before."""
    whole, words = ir.VectorType(I32, 4), ir.VectorType(ELEMENTS["i16"], 8)
    one = builder.insert_element(constant(whole, 0), opaque(builder, builder.zext(word, I32)), ir.Constant(I32, 0))
    low = shuffled(builder, *[builder.bitcast(one, words)] * 2, [0])
    return builder.extract_element(half_to_float(builder, low), ir.Constant(I32, 0))


@operation
def to_half(builder, x):
    """Round float32 lanes to half precision, to the nearest, ties to even: int16 lanes, its bits.

    Bit by bit: adding 2^-14 * 2^k rounds a subnormal at its last bit; a NaN stays one."""
    n = x.type.count
    vec, whole, words = x.type, ir.VectorType(I32, n), ir.VectorType(ELEMENTS["i16"], n)
    if HALF:
        return builder.bitcast(builder.fptrunc(x, ir.VectorType(ELEMENTS["f16"], n)), words)
    number = builder.bitcast(x, whole)
    size = builder.and_(number, constant(whole, 0x7FFFFFFF))
    sign = builder.and_(builder.lshr(number, constant(whole, 16)), constant(whole, 0x8000))
    odd = builder.and_(builder.lshr(size, constant(whole, 13)), constant(whole, 1))
    normal = builder.add(builder.add(size, constant(whole, 0xFFF - (112 << 23))), odd)
    normal = builder.lshr(normal, constant(whole, 13))
    small = builder.bitcast(builder.fadd(builder.bitcast(size, vec), constant(vec, 0.5)), whole)
    small = builder.sub(small, constant(whole, 0x3F000000))
    made = builder.select(builder.icmp_unsigned("<", size, constant(whole, 113 << 23)), small, normal)
    made = builder.select(builder.icmp_unsigned(">=", size, constant(whole, 143 << 23)), constant(whole, 0x7C00), made)
    made = builder.select(builder.icmp_unsigned(">", size, constant(whole, 255 << 23)), constant(whole, 0x7E00), made)
    return builder.trunc(builder.or_(made, sign), words)


@operation
def from_bfloat16(builder, words):
    """Convert int16 lanes, the bits of bfloat16, to float32, exactly."""
    whole = ir.VectorType(I32, words.type.count)
    moved = builder.shl(builder.zext(words, whole), constant(whole, 16))
    return builder.bitcast(moved, ir.VectorType(ELEMENTS["f32"], words.type.count))


@operation
def to_bfloat16(builder, x):
    """Round float32 lanes to bfloat16, to the nearest, ties to even: int16 lanes, its bits. A NaN stays one."""
    n = x.type.count
    whole, words = ir.VectorType(I32, n), ir.VectorType(ELEMENTS["i16"], n)
    number = builder.bitcast(x, whole)
    odd = builder.and_(builder.lshr(number, constant(whole, 16)), constant(whole, 1))
    rounded = builder.add(builder.add(number, constant(whole, 0x7FFF)), odd)
    quiet = builder.or_(number, constant(whole, 1 << 22))
    made = builder.select(builder.fcmp_unordered("uno", x, x), quiet, rounded)
    return builder.trunc(builder.lshr(made, constant(whole, 16)), words)


@lanewise
def fma(builder, a, b, c):
    """Return a * b + c."""
    kind = "fma" if INSTRUCTIONS != "portable" else "fmuladd"
    return call(builder, f"llvm.{kind}.{named(a.type)}", a.type, a, b, c)


@operation
def square_root(builder, x):
    """Return the square root of a number, or of every lane."""
    return call(builder, f"llvm.sqrt.{named(x.type)}", x.type, x)


@operation
def nearest(builder, x):
    """Round every lane to a whole number, ties to even. |x| < 2^22"""
    return builder.fsub(builder.fadd(x, constant(x.type, 1.5 * 2.0**23)), constant(x.type, 1.5 * 2.0**23))


@operation
def absolute(builder, x):
    """Return the size of every lane; that of the lowest integer is itself."""
    if not isinstance(x.type.element, ir.IntType):
        return call(builder, f"llvm.fabs.{named(x.type)}", x.type, x)
    return call(builder, f"llvm.abs.{named(x.type)}", x.type, x, ir.Constant(ELEMENTS["i1"], 0))


def _picked(builder: Any, sign: str, a: Any, b: Any) -> Any:
    if isinstance(a.type.element, ir.IntType):
        return builder.select(builder.icmp_signed(sign, a, b), a, b)
    return builder.select(builder.fcmp_ordered(sign, a, b), a, b)


@lanewise
def larger(builder, a, b):
    """Return the larger of two lanes, with sign; b where one is no number."""
    return _picked(builder, ">", a, b)


@lanewise
def smaller(builder, a, b):
    """Return the smaller of two lanes, with sign; b where one is no number."""
    return _picked(builder, "<", a, b)


@lanewise
def less(builder, a, b):
    """Compare lanes, with sign: a < b."""
    if isinstance(a.type.element, ir.IntType):
        return builder.icmp_signed("<", a, b)
    return builder.fcmp_ordered("<", a, b)


@lanewise
def equal(builder, a, b):
    """Compare lanes: a == b."""
    if isinstance(a.type.element, ir.IntType):
        return builder.icmp_signed("==", a, b)
    return builder.fcmp_ordered("==", a, b)


def choose(mask: Value, a: Number, b: Number) -> Value:
    """Return a where the mask is set, else b."""
    return pick(mask, a, b)


@operation
def first(builder, lanes, count):
    """Return a mask of the first `count` lanes of vectors of this type."""
    return first_lanes(builder, lanes.llvm, count)


@operation
def shift_down(builder, x, count):
    """Shift every lane to its lower end, zeros come in; by a number, or by the lanes of a vector."""
    if not isinstance(count.type, ir.VectorType):
        count = filled(builder, x.type, number(builder, count, x.type.element))
    return builder.lshr(x, count)


@operation
def shift_up(builder, x, counts):
    """Shift every lane to its upper end by the lanes of another vector."""
    return builder.shl(x, counts)


@operation
def join(builder, a, b):
    """Put b behind a."""
    return shuffled(builder, a, b, range(2 * a.type.count))


@operation
def lower(builder, x):
    """Return the first half of the lanes."""
    return shuffled(builder, x, x, range(x.type.count // 2))


@operation
def upper(builder, x):
    """Return the second half of the lanes."""
    return shuffled(builder, x, x, range(x.type.count // 2, x.type.count))


@operation
def lane(builder, x, i):
    """Return one lane, a number."""
    return builder.extract_element(x, i)


def shuffle(*index: int) -> Any:
    """Make a function that picks these lanes, at module level: `SWAPPED = shuffle(1, 0, 3, 2)`."""

    @operation
    def shuffle(builder, a):
        """Pick lanes."""
        return shuffled(builder, a, a, index)

    return shuffle


def shuffle_two(*index: int) -> Any:
    """Make a function that picks these lanes of two vectors; those of the second are counted on from the first."""

    @operation
    def shuffle(builder, a, b):
        """Pick lanes."""
        return shuffled(builder, a, b, index)

    return shuffle


def vector(kind: Kind, *values: float) -> Any:
    """Make a function of nothing that returns constants. Made at module level: `ODD = vector(i32x4, 1, 3, 5, 7)`"""

    @operation
    def vector(builder):
        """Return constants."""
        return constant(kind.llvm, list(values))

    return vector


def _reduced(builder: Any, x: Any, build: Callable[[Any, Any], Any]) -> Any:
    """Apply `build` to the lower and the upper half of the lanes, until one is left."""
    while (count := x.type.count // 2) > 0:
        x = build(*(shuffled(builder, x, x, range(at, at + count)) for at in (0, count)))
    return builder.extract_element(x, ir.Constant(I32, 0))


@operation
def total(builder, x):
    """Add up the lanes, always in the same order: the upper half to the lower one, until one is left."""
    return _reduced(builder, x, builder.add if isinstance(x.type.element, ir.IntType) else builder.fadd)


@operation
def largest(builder, x):
    """Return the largest lane, with sign."""
    return _reduced(builder, x, lambda a, b: _picked(builder, ">", a, b))
