"""Read 8 numbers that lie a stride apart: the scales of 8 blocks of 32 weights."""

from typing import Any

from llvmlite import ir

from .llvm import ELEMENTS, I32, I64, constant, opaque, pointer, shuffled
from .processor import SET
from .traced import operation


def _from_vectors(builder: Any, address: Any, kind: ir.IntType, stride: int, end: int) -> Any:
    """Pick 8 numbers from as few loads of 64 bytes as hold them, none of which goes beyond byte `end`."""
    size, many = kind.width // 8, ir.VectorType(kind, 512 // kind.width)
    found, have, at = ir.Constant(ir.VectorType(kind, 8), ir.Undefined), 0, 0
    while have < 8:
        at = min(have * stride, end - 64)
        vector = builder.load(pointer(builder, many, builder.add(address, ir.Constant(I64, at))), align=1)
        inside = [i for i in range(have, 8) if i * stride + size <= at + 64]
        picked = {i: (i * stride - at) // size for i in inside}
        new = shuffled(builder, vector, vector, [picked.get(i, 0) for i in range(8)])
        found = shuffled(builder, found, new, [8 + i if i in picked else i for i in range(8)])
        have += len(inside)
    return found


def _one_by_one(builder: Any, address: Any, kind: ir.IntType, stride: int) -> Any:
    """Read 8 numbers into a vector, the first by way of an integer: an insertion would wait for what was there."""
    places = [builder.add(address, ir.Constant(I64, i * stride)) for i in range(8)]
    numbers = [builder.load(pointer(builder, kind, place), align=1) for place in places]
    first = builder.insert_element(
        constant(ir.VectorType(I64, kind.width // 8), 0),
        opaque(builder, builder.zext(numbers[0], I64)),
        ir.Constant(I32, 0),
    )
    found = builder.bitcast(first, ir.VectorType(kind, 8))
    for i, number in enumerate(numbers[1:], 1):
        found = builder.insert_element(found, number, ir.Constant(I32, i))
    return found


def strided(element: str, stride: int, end: int) -> Any:
    """Make a function that reads 8 numbers at an address, `stride` bytes apart; bytes up to `end` may be touched."""
    kind = ELEMENTS[element]

    @operation
    def strided(builder, address):
        """Read 8 numbers."""
        if SET == "avx512":
            return _from_vectors(builder, address, kind, stride, end)
        return _one_by_one(builder, address, kind, stride)

    return strided
