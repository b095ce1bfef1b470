"""Hold vectors of 64 bytes as numba types: arithmetic by operators, loads and stores at addresses.

`Vec(element, lanes)` is a numba type whose value is LLVM's vector `<lanes x element>`. A kernel is written once, for
vectors of 64 bytes; LLVM splits them where registers are shorter. Integers have no sign: `lanes.py` has conversions and
operations for either. An address is an int64; `load(f32x16, address)` needs no alignment.

`SET` is chosen once: `avx512` and `avx2` have instructions of their own in dots.py, `portable` is what LLVM makes of
plain vector code on any processor. LLAVA_REF_SIMD names a lower one; what the processor has beyond it is then unused.
"""

import inspect
import operator
import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core import config as numba_config
from numba.core.extending import _Intrinsic
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin, models, register_model

SETS = {"avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"), "avx2": ("avx2", "fma", "f16c"), "portable": ()}
BASELINE = {"avx2": "haswell", "portable": "x86-64"}  # LLVM's names of processors that have a set and no more
ELEMENTS = {
    "i1": ir.IntType(1), "i8": ir.IntType(8), "i16": ir.IntType(16), "i32": ir.IntType(32), "i64": ir.IntType(64),
    "f16": ir.HalfType(), "f32": ir.FloatType(), "f64": ir.DoubleType(),
}  # fmt: skip
config: Any = numba_config
I32, I64 = ELEMENTS["i32"], ELEMENTS["i64"]


def _chosen(host: dict[str, bool]) -> str:
    """Name the best set that the processor has, or a lower one that LLAVA_REF_SIMD asks for."""
    names, wanted = list(SETS), os.environ.get("LLAVA_REF_SIMD", "")
    best = next(name for name in names if all(host.get(feature) for feature in SETS[name]))
    if wanted not in names[names.index(best) + 1 :]:
        return best
    if "x86_64" in llvmlite.binding.get_default_triple():  # LLVM itself must not know more than the set
        config.CPU_NAME, config.CPU_FEATURES = BASELINE[wanted], ""
    return wanted


HOST = dict(llvmlite.binding.get_host_cpu_features())
SET = _chosen(HOST)
LOWERED = config.CPU_NAME is not None
VNNI = not LOWERED and bool(HOST.get({"avx512": "avx512vnni", "avx2": "avxvnni"}.get(SET, "")))
BF16 = not LOWERED and SET == "avx512" and bool(HOST.get("avx512bf16"))


class Vec(types.Type):
    """A vector of `lanes` elements."""

    def __init__(self, element: str, lanes: int):
        self.element, self.lanes = element, lanes
        super().__init__(name=f"{element}x{lanes}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ELEMENTS[self.element], self.lanes)


@register_model(Vec)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, vec):
        super().__init__(manager, vec, vec.llvm)


i8x64, i16x32, i32x16, i64x8, f16x32, f32x16, f64x8 = (
    Vec(element, 512 // int(element[1:])) for element in ("i8", "i16", "i32", "i64", "f16", "f32", "f64")
)
i8x32, i16x16, i32x8, f16x16, f32x8 = (
    Vec(element, 256 // int(element[1:])) for element in ("i8", "i16", "i32", "f16", "f32")
)
i8x16, i16x8, i32x4, f16x8, f32x4 = (
    Vec(element, 128 // int(element[1:])) for element in ("i8", "i16", "i32", "f16", "f32")
)


class VectorOperation(_Intrinsic):  # type: ignore[misc]
    """One instruction or a few: numba's functions call it, and so may a kernel that is traced (traced.py)."""

    trace: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """Add the instructions to the kernel that is being traced."""
        return self.trace(*args)


def operation(result: Callable[..., Any]) -> Callable[[Callable[..., Any]], VectorOperation]:
    """Make an operation of `build(builder, *values) -> value`; `result` gives its type from those of the arguments.

    An argument that names a type, as in `load(f32x16, ...)`, is handed to both as that type."""

    def made(build: Callable[..., Any]) -> VectorOperation:
        def typing(context, *given):
            meant = [getattr(t, "instance_type", t) for t in given]

            def lower(context, builder, sig, args):
                made = build(builder, *(t if t is not g else a for t, g, a in zip(meant, given, args, strict=True)))
                return context.get_dummy_value() if sig.return_type == types.void else made

            return result(*meant)(*given), lower

        typing.__name__, typing.__doc__ = build.__name__, build.__doc__
        typing.__signature__ = inspect.signature(build)  # type: ignore[attr-defined]
        found = VectorOperation(build.__name__, typing)
        found._register()
        found.trace = lambda *args: TRACED[0](result, build, args)
        return found

    return made


TRACED: list[Callable[..., Any]] = []
"""How a call is traced: set by traced.py."""


def llvm_type(kind: Any) -> ir.Type:
    """Return LLVM's type of a vector or a number."""
    if kind == types.boolean:
        return ELEMENTS["i1"]
    return kind.llvm if isinstance(kind, Vec) else ELEMENTS[f"{kind.name[0]}{kind.bitwidth}".replace("u", "i")]


def call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """Call an LLVM intrinsic of this name."""
    wanted = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, wanted, name), args)


def constant(kind: Any, values: Any) -> ir.Constant:
    """Return a vector of constants of LLVM's type `kind`; one number fills it."""
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


def pointer(builder: Any, kind: ir.Type, address: Any) -> Any:
    """Return a pointer to `kind` at an address.

    Numba generates code of a function before it is linked into its callers, which may leave an address as an index on
    a null pointer: without the attribute LLVM would take what follows for unreachable and remove it."""
    set.add(builder.function.attributes, "null_pointer_is_valid")
    return builder.inttoptr(address, kind.as_pointer())


@operation(lambda kind, address: kind)
def load(builder, kind, address):
    """Load a vector or a number of type `kind`."""
    return builder.load(pointer(builder, llvm_type(kind), address), align=1)


@operation(lambda *_: types.void)
def store(builder, value, address):
    """Store a vector or a number."""
    builder.store(value, pointer(builder, value.type, address), align=1)


@operation(lambda address: types.void)
def prefetch(builder, address):
    """Have 64 bytes brought to the second-level cache."""
    kind, numbers = ir.IntType(8), [ir.Constant(I32, number) for number in (0, 2, 1)]
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer(builder, kind, address), *numbers)


def first_lanes(builder: Any, kind: ir.VectorType, count: Any) -> Any:
    """Return a mask of the first `count` lanes of a vector."""
    lanes = constant(ir.VectorType(I64, kind.count), list(range(kind.count)))
    return builder.icmp_signed("<", lanes, filled(builder, lanes.type, count))


def named(kind: ir.VectorType) -> str:
    """Return the name of a vector type in names of LLVM's intrinsics."""
    names = {"half": "f16", "float": "f32", "double": "f64"}
    return f"v{kind.count}{names.get(str(kind.element), str(kind.element))}"


@operation(lambda kind, count, *_: kind)
def load_some(builder, kind, count, address):
    """Load the first `count` elements, and zeros behind them. Nothing behind them is touched."""
    kind, name = kind.llvm, f"llvm.masked.load.{named(kind.llvm)}.p0"
    at = pointer(builder, kind, address)
    mask = first_lanes(builder, kind, count)
    return call(builder, name, kind, at, ir.Constant(I32, 1), mask, ir.Constant(kind, None))


@operation(lambda *_: types.void)
def store_some(builder, value, count, address):
    """Store the first `count` elements."""
    name, at = f"llvm.masked.store.{named(value.type)}.p0", pointer(builder, value.type, address)
    call(builder, name, ir.VoidType(), value, at, ir.Constant(I32, 1), first_lanes(builder, value.type, count))


@operation(lambda kind, value: kind)
def splat(builder, kind, value):
    """Fill a vector with a number."""
    return filled(builder, kind.llvm, number(builder, value, kind.llvm.element))


def _operator(of: Any, whole: str, real: str | None = None) -> None:
    """Teach numba an operator on two vectors, or a vector and a number."""

    @infer_global(of)
    class Typing(AbstractTemplate):
        def generic(self, args, kws):
            kinds = {kind for kind in args if isinstance(kind, Vec)}
            if len(args) == 2 and len(kinds) == 1 and not kws:
                return kinds.pop()(*(types.unliteral(kind) for kind in args))

    def lower(context, builder, sig, args):
        vec = sig.return_type.llvm
        a, b = (
            value if isinstance(kind, Vec) else filled(builder, vec, number(builder, value, vec.element))
            for kind, value in zip(sig.args, args, strict=True)
        )
        return getattr(builder, whole if isinstance(vec.element, ir.IntType) else str(real))(a, b)

    for kinds in ((Vec, Vec), (Vec, types.Number), (types.Number, Vec)):
        lower_builtin(of, *kinds)(lower)


_operator(operator.add, "add", "fadd")
_operator(operator.sub, "sub", "fsub")
_operator(operator.mul, "mul", "fmul")
_operator(operator.truediv, "sdiv", "fdiv")
_operator(operator.and_, "and_")
_operator(operator.or_, "or_")
_operator(operator.xor, "xor")
_operator(operator.lshift, "shl")
_operator(operator.rshift, "ashr")  # lanes.shift_down brings zeros in
