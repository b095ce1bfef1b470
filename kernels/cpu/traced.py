"""Write a kernel by running it once: Python calls the operations, and each adds its instruction.

A kernel is a function of three values that stand for numbers of the machine. Its functions are ordinary ones, calls and
loops over constants vanish, a function may be an argument, and an `if` on a constant chooses what is compiled.
What depends on numbers of the machine is said so: `for i in loop(first, end)` runs its body once, for all i; `with
when(condition)` may be skipped; what changes from turn to turn is kept in `Cell`s, or in memory.

Numbers of Python are taken for int64 or float32, or for what they are combined with. `//` and `%` of integers go
towards zero, as the processor's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from llvmlite import ir

from . import llvm
from .llvm import I64, Kind

Number = Any
BUILDERS: list[Any] = []
"""The builder of the kernel that is being written, while there is one."""
f32, i64 = Kind("f32"), Kind("i64")


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
    """A number or a vector that the kernel will have: LLVM's value."""

    def __init__(self, llvm: Any):
        self.llvm = llvm

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
    __hash__ = None  # type: ignore[assignment]

    def __neg__(self) -> "Value":
        return _binary("sub", "", 0, self) if _whole(self.llvm.type) else Value(builder().fneg(self.llvm))

    def __bool__(self) -> bool:
        raise TypeError("a condition on a number of the machine: use when() or choose()")

    @property
    def lanes(self) -> int:
        """Return how many lanes a vector has."""
        return int(self.llvm.type.count)


def builder() -> Any:
    """Return the builder of the kernel that is being written."""
    return BUILDERS[-1]


def write(function: Any, body: Callable[..., None]) -> None:
    """Write an LLVM function by running `body` on its arguments."""
    BUILDERS.append(ir.IRBuilder(function.append_basic_block()))
    try:
        body(*map(Value, function.args))
        BUILDERS[-1].ret_void()
    finally:
        BUILDERS.pop()


def _element(kind: Any) -> Any:
    return getattr(kind, "element", kind)


def _whole(kind: Any) -> bool:
    return isinstance(_element(kind), ir.IntType)


def _llvm_type(value: Number) -> Any:
    """Return the LLVM type of a value, or the one that a number of Python is taken for."""
    if isinstance(value, Value):
        return value.llvm.type
    return (i64 if isinstance(value, int) else f32).llvm


def valued(value: Number, kind: Any) -> Any:
    """Return LLVM's value of type `kind`: of a number of Python, or of a value that is spread or converted to it."""
    element = _element(kind)
    if isinstance(value, Value):
        if value.llvm.type == kind:
            return value.llvm
        made = llvm.number(builder(), value.llvm, element)
    else:
        made = ir.Constant(element, value)
    return llvm.filled(builder(), kind, made) if isinstance(kind, ir.VectorType) else made


def _common(*values: Number) -> Any:
    """Return the type in which values are computed: that of a vector, of a float, of the longer integer."""
    kinds = [value.llvm.type for value in values if isinstance(value, Value)]
    return max(kinds, key=lambda kind: (isinstance(kind, ir.VectorType), not _whole(kind), getattr(kind, "width", 0)))


def _binary(whole: str, real: str, a: Number, b: Number) -> Value:
    kind = _common(a, b)
    return Value(getattr(builder(), whole if _whole(kind) else real)(valued(a, kind), valued(b, kind)))


def _compared(sign: str, a: Number, b: Number) -> Value:
    kind = _common(a, b)
    made = builder().icmp_signed if _whole(kind) else builder().fcmp_ordered
    return Value(made(sign, valued(a, kind), valued(b, kind)))


def operation(build: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operation, which kernels call, of `build(builder, *values)`.

    Values and numbers are handed over as LLVM's, kinds as they are; LLVM's value, or a list of them, is given back."""

    @wraps(build)
    def called(*args: Any) -> Any:
        made = build(builder(), *(x if isinstance(x, Kind) else valued(x, _llvm_type(x)) for x in args))
        return [Value(x) for x in made] if isinstance(made, list) else None if made is None else Value(made)

    return called


def lanewise(build: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operation on arguments of one type: a number among them is spread to the lanes of the others."""

    @wraps(build)
    def called(*args: Any) -> Value:
        kind = _common(*args)
        return Value(build(builder(), *(valued(x, kind) for x in args)))

    return called


def loop(first: Number, end: Number, step: Number = 1) -> Iterator[Value]:
    """Give one value that stands for first, first + step, ... below end. The step is above 0."""
    at = Cell(Value(valued(first, I64)))
    stop, step = valued(end, I64), valued(step, I64)
    for turn in turns():
        index = at.value
        with when(index >= Value(stop)):
            turn.leave()
        yield index
        at.value = index + Value(step)


class Leave:
    """Where to go on behind a loop."""

    def __init__(self, block: Any):
        self._block = block

    def leave(self) -> None:
        """End the loop."""
        builder().branch(self._block)


def turns() -> Iterator[Leave]:
    """Give what ends the loop: its body is done over and over, until `with when(...): turn.leave()`."""
    body, behind = builder().append_basic_block("turn"), builder().append_basic_block("behind")
    builder().branch(body)
    builder().position_at_end(body)
    yield Leave(behind)
    builder().branch(body)
    builder().position_at_end(behind)


@contextmanager
def when(condition: Value) -> Iterator[None]:
    """Do what follows where the condition holds."""
    with builder().if_then(condition.llvm):
        yield


@contextmanager
def otherwise(condition: Value) -> Iterator[None]:
    """Do what follows where the condition does not hold."""
    with builder().if_then(builder().not_(condition.llvm)):
        yield


def pick(condition: Value, a: Number, b: Number) -> Value:
    """Return a where the condition holds, else b: two numbers, or two vectors. Both are computed."""
    kind = _common(a, b) if isinstance(a, Value) or isinstance(b, Value) else _llvm_type(a)
    return Value(builder().select(condition.llvm, valued(a, kind), valued(b, kind)))


def least(a: Number, b: Number) -> Value:
    """Return the smaller of two numbers; b where one is no number."""
    return pick(_compared("<", a, b), a, b)


def most(a: Number, b: Number) -> Value:
    """Return the larger of two numbers; b where one is no number."""
    return pick(_compared(">", a, b), a, b)


class Cell:
    """A number or vector that changes: `cell.value = cell.value + 1`."""

    def __init__(self, value: Number):
        self._kind = _llvm_type(value)
        with builder().goto_entry_block():
            self._at = builder().alloca(self._kind)
        self.value = value

    @property
    def value(self) -> Value:
        """Return what the cell has now."""
        return Value(builder().load(self._at))

    @value.setter
    def value(self, value: Number) -> None:
        builder().store(valued(value, self._kind), self._at)


def room(count: int) -> Value:
    """Return the address of 64 * count bytes on the stack, aligned to 64."""
    return Value(llvm.room(builder(), 64 * count))
