"""Read a kernel's arguments, which are int64 side by side."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .simd import I64, operation, pointer


def words(count: int) -> Any:
    """Make a function that reads so many int64 at an address, as a tuple.

    Made at module level, `FOUR = words(4)`, and called in a kernel, `x, y, out, n = FOUR(args)`."""

    @operation(lambda args: types.UniTuple(types.int64, count))
    def words(builder, args):
        """Read int64 side by side."""
        first = pointer(builder, I64, args)
        places = [builder.gep(first, [ir.Constant(I64, i)]) for i in range(count)]
        return cgutils.pack_array(builder, [builder.load(place) for place in places])

    return words


@operation(lambda word: types.float32)
def real(builder, word):
    """Return the float64 whose bits these are, rounded to float32."""
    return builder.fptrunc(builder.bitcast(word, ir.DoubleType()), ir.FloatType())
