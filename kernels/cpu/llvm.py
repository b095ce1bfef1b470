"""Say in LLVM's words what kernels are made of: kinds of numbers and vectors, constants, shuffles, addresses.

These functions add instructions to a `builder` (llvmlite's IRBuilder) and return LLVM's values. Operations are made of
them (simd.py, lanes.py, dots.py); kernels are made of operations.
"""

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

ELEMENTS = {
    "i1": ir.IntType(1), "i8": ir.IntType(8), "i16": ir.IntType(16), "i32": ir.IntType(32), "i64": ir.IntType(64),
    "f16": ir.HalfType(), "f32": ir.FloatType(), "f64": ir.DoubleType(),
}  # fmt: skip
I32, I64 = ELEMENTS["i32"], ELEMENTS["i64"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A number, or a vector of `lanes` of them. Integers have no sign: operations take one, or do not."""

    element: str
    lanes: int = 0

    def __str__(self) -> str:
        return f"{self.element}x{self.lanes}" if self.lanes else self.element

    @property
    def llvm(self) -> Any:
        element = ELEMENTS[self.element]
        return ir.VectorType(element, self.lanes) if self.lanes else element


def call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """Call an LLVM intrinsic of this name."""
    known = builder.module.globals
    function = known.get(name) or ir.Function(builder.module, ir.FunctionType(result, [x.type for x in args]), name)
    return builder.call(function, args)


def named(kind: ir.Type) -> str:
    """Return the name of a type in names of LLVM's intrinsics."""
    names = {"half": "f16", "float": "f32", "double": "f64"}
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{named(kind.element)}"
    return names.get(str(kind), str(kind))


def constant(kind: Any, values: Any) -> ir.Constant:
    """Return a number or a vector of constants of LLVM's type `kind`; one number fills it."""
    if not isinstance(kind, ir.VectorType):
        return ir.Constant(kind, values)
    numbers = values if isinstance(values, (list, tuple)) else [values] * kind.count
    return ir.Constant(kind, [ir.Constant(kind.element, number) for number in numbers])


def shuffled(builder: Any, a: Any, b: Any, index: Any) -> Any:
    """Pick elements of a, or of b, which follow on those of a, by constant indices."""
    return builder.shuffle_vector(a, b, constant(ir.VectorType(I32, len(index)), list(index)))


def filled(builder: Any, kind: ir.VectorType, value: Any) -> Any:
    """Fill a vector with one number."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return shuffled(builder, one, one, [0] * kind.count)


def number(builder: Any, value: Any, kind: Any) -> Any:
    """Convert a number to an element's LLVM type; integers keep their lowest bits, or their sign."""
    if value.type == kind:
        return value
    if isinstance(kind, ir.IntType):
        return builder.trunc(value, kind) if value.type.width > kind.width else builder.sext(value, kind)
    if isinstance(value.type, ir.IntType):
        return builder.sitofp(value, kind)
    return builder.fptrunc(value, kind) if isinstance(value.type, ir.DoubleType) else builder.fpext(value, kind)


def first_lanes(builder: Any, kind: ir.VectorType, count: Any) -> Any:
    """Return a mask of the first `count` lanes of a vector."""
    lanes = constant(ir.VectorType(I64, kind.count), list(range(kind.count)))
    return builder.icmp_signed("<", lanes, filled(builder, lanes.type, count))


def pointer(builder: Any, kind: ir.Type, address: Any) -> Any:
    """Return a pointer to `kind` at an address, which may be any number."""
    set.add(builder.function.attributes, "null_pointer_is_valid")
    return builder.inttoptr(address, kind.as_pointer())


def room(builder: Any, size: int) -> Any:
    """Return the address of `size` bytes on the stack, aligned to 64."""
    with builder.goto_entry_block():
        place = builder.alloca(ir.IntType(8), size)
        place.align = 64
        return builder.ptrtoint(place, I64)


def opaque(builder: Any, value: Any) -> Any:
    """Return an integer itself, of which LLVM then knows nothing: it goes through a register of integers."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)
