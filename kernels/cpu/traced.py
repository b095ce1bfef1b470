"""Write a kernel by running it once: Python calls the operations, and each adds its instruction.

numba compiles a function line by line, in 0.2 s each; a kernel of twenty small functions would take seconds. A
`@traced` kernel is run by Python instead, with values that stand for numbers of the machine: its functions are
ordinary ones, calls and loops over constants vanish, a function may be an argument, and an `if` on a constant chooses
what is compiled. What depends on numbers of the machine is said so: `for i in loop(first, end)` runs its body once, for
all i; `with when(condition)` may be skipped; what changes from turn to turn is kept in `Cell`s, or in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from .functions import Kernel, kernel
from .simd import I64, SET, TRACED, VNNI, Vec, filled, llvm_type, number

Number = Any
TUNING = {f'"target-features"="{get_host_cpu_features()},+fast-dpwssd"'} if VNNI and SET == "avx512" else set()
"""LLVM takes some processors' multiply-add apart into two instructions, for a chain that is no bottleneck here."""
BUILDERS: list[Any] = []
"""The builder of the kernel that is being written, while there is one."""


def _operator(whole: str, real: str = "") -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make an operator's two methods of a value, from the names of LLVM's instructions."""

    def method(self: "Value", other: Number) -> "Value":
        return _binary(whole, real, self, other)

    def turned(self: "Value", other: Number) -> "Value":
        return _binary(whole, real, other, self)

    return method, turned


def _comparison(sign: str) -> Callable[..., Any]:
    def method(self: "Value", other: Number) -> "Value":
        return _compared(sign, self, other)

    return method


class Value:
    """A number or a vector that the kernel will have: numba's type of it, and LLVM's value."""

    def __init__(self, kind: Any, llvm: Any):
        self.kind, self.llvm = kind, llvm

    __add__, __radd__ = _operator("add", "fadd")
    __sub__, __rsub__ = _operator("sub", "fsub")
    __mul__, __rmul__ = _operator("mul", "fmul")
    __truediv__, __rtruediv__ = _operator("sdiv", "fdiv")
    __floordiv__, __rfloordiv__ = _operator("sdiv")
    __mod__, __rmod__ = _operator("srem")
    __and__, __rand__ = _operator("and_")
    __or__, __ror__ = _operator("or_")
    __xor__, __rxor__ = _operator("xor")
    __lshift__, __rlshift__ = _operator("shl")
    __rshift__, __rrshift__ = _operator("ashr")
    __lt__, __le__, __gt__, __ge__ = (_comparison(sign) for sign in ("<", "<=", ">", ">="))
    __eq__ = _comparison("==")
    __ne__ = _comparison("!=")

    def __neg__(self) -> "Value":
        return _binary("sub", "", 0, self) if _whole(self.kind) else Value(self.kind, _builder().fneg(self.llvm))

    def __bool__(self) -> bool:
        raise TypeError("a condition on a number of the machine: use when() or choose()")


def _builder() -> Any:
    return BUILDERS[-1]


def _whole(kind: Any) -> bool:
    element = llvm_type(kind)
    return isinstance(getattr(element, "element", element), ir.IntType)


def valued(value: Number, kind: Any) -> Value:
    """Return a value of type `kind`: a number of Python, or a value that is spread or converted to it."""
    to = llvm_type(kind)
    if isinstance(value, Value) and value.llvm.type == to:
        return value
    element = to.element if isinstance(to, ir.VectorType) else to
    made = number(_builder(), value.llvm, element) if isinstance(value, Value) else ir.Constant(element, value)
    return Value(kind, filled(_builder(), to, made) if isinstance(to, ir.VectorType) else made)


def _common(a: Number, b: Number) -> Any:
    """Return the type in which a and b are computed: that of a vector, of a float, of the longer integer."""
    kinds = [value.kind for value in (a, b) if isinstance(value, Value)]
    width = {str(kind): getattr(kind, "bitwidth", 0) for kind in kinds}
    return max(kinds, key=lambda kind: (isinstance(kind, Vec), not _whole(kind), width[str(kind)]))


def _binary(whole: str, real: str, a: Number, b: Number) -> Value:
    kind = _common(a, b)
    made = getattr(_builder(), whole if _whole(kind) else real)
    return Value(kind, made(valued(a, kind).llvm, valued(b, kind).llvm))


def _compared(sign: str, a: Number, b: Number) -> Value:
    kind = _common(a, b)
    made = _builder().icmp_signed if _whole(kind) else _builder().fcmp_ordered
    mask = Vec("i1", kind.lanes) if isinstance(kind, Vec) else types.boolean
    return Value(mask, made(sign, valued(a, kind).llvm, valued(b, kind).llvm))


def _call(result: Callable[..., Any], build: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Add an operation: numbers of Python are taken for int64 or float32."""
    given = [arg if isinstance(arg, (Value, types.Type)) else valued(arg, _python(arg)) for arg in args]
    kind = result(*(arg.kind if isinstance(arg, Value) else arg for arg in given))
    made = build(_builder(), *(arg.llvm if isinstance(arg, Value) else arg for arg in given))
    return None if kind == types.void else Value(kind, made)


def _python(arg: float) -> Any:
    return types.float32 if isinstance(arg, float) else types.int64


TRACED.append(_call)


def loop(first: Number, end: Number, step: int = 1) -> Iterator[Value]:
    """Give one value that stands for first, first + step, ... below end."""
    builder, kind = _builder(), types.int64
    start, stop = valued(first, kind).llvm, valued(end, kind).llvm
    with cgutils.for_range_slice(builder, start, stop, ir.Constant(I64, step), inc=True) as (index, _):
        yield Value(kind, index)


class Leave:
    """Where to go on behind a loop."""

    def __init__(self, block: Any):
        self._block = block

    def leave(self) -> None:
        """End the loop."""
        _builder().branch(self._block)


def turns() -> Iterator[Leave]:
    """Give what ends the loop: its body is done over and over, until `with when(...): turn.leave()`."""
    builder = _builder()
    body, behind = builder.append_basic_block("turn"), builder.append_basic_block("behind")
    builder.branch(body)
    builder.position_at_end(body)
    yield Leave(behind)
    builder.branch(body)
    builder.position_at_end(behind)


@contextmanager
def when(condition: Value) -> Iterator[None]:
    """Do what follows where the condition holds."""
    with _builder().if_then(condition.llvm):
        yield


@contextmanager
def otherwise(condition: Value) -> Iterator[None]:
    """Do what follows where the condition does not hold."""
    with _builder().if_then(_builder().not_(condition.llvm)):
        yield


def pick(condition: Value, a: Number, b: Number) -> Value:
    """Return a where the condition holds, else b: two numbers."""
    kind = _common(a, b)
    return Value(kind, _builder().select(condition.llvm, valued(a, kind).llvm, valued(b, kind).llvm))


def least(a: Number, b: Number) -> Value:
    """Return the smaller of two numbers."""
    return pick(_compared("<", a, b), a, b)


def most(a: Number, b: Number) -> Value:
    """Return the larger of two numbers."""
    return pick(_compared(">", a, b), a, b)


class Cell:
    """A number or vector that changes: `cell.value = cell.value + 1`."""

    def __init__(self, value: Number):
        value = value if isinstance(value, Value) else valued(value, _python(value))
        self._kind, self._at = value.kind, cgutils.alloca_once(_builder(), value.llvm.type)
        self.value = value

    @property
    def value(self) -> Value:
        """Return what the cell has now."""
        return Value(self._kind, _builder().load(self._at))

    @value.setter
    def value(self, value: Number) -> None:
        _builder().store(valued(value, self._kind).llvm, self._at)


def room(count: int) -> Value:
    """Return the address of 64 * count bytes on the stack, aligned."""
    kind = ir.ArrayType(ir.VectorType(ir.FloatType(), 16), count)
    return Value(types.int64, _builder().ptrtoint(cgutils.alloca_once(_builder(), kind), I64))


def _write(body: Callable[..., None]) -> Any:
    """Make an intrinsic whose code is what `body` does."""

    def typing(context, args, first, end):
        def lower(context, builder, sig, given):
            set.update(builder.function.attributes, TUNING)
            BUILDERS.append(builder)
            try:
                body(*(Value(types.int64, value) for value in given))
            finally:
                BUILDERS.pop()
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), lower

    return intrinsic(typing)


def _calling(args, first, end):
    BODY(args, first, end)  # noqa: F821


def traced(body: Callable[..., None]) -> Kernel:
    """Compile a kernel of a function (args, first, end) that is run once, or load it."""
    code: CodeType = body.__code__
    here = _calling.__code__.replace(
        co_name=code.co_name,
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
        co_qualname=code.co_qualname,
    )
    made = FunctionType(here, {"BODY": _write(body)}, body.__name__)
    made.__module__, made.__qualname__ = body.__module__, body.__qualname__
    return kernel(made)
