"""Read the scales of 8 blocks of 32 weights, which lie a block apart, and spread them over the weights."""

from typing import Any

from llvmlite import ir

from ..lanes import from_half, shuffle
from ..simd import ELEMENTS, I32, I64, SET, Vec, operation, pointer, shuffled
from ..traced import Number, Value

PAIRS = [shuffle(*[i] * 8, *[i + 1] * 8) for i in (0, 2, 4, 6)]
TWICE = shuffle(*(i // 2 for i in range(16)))


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
    found = ir.Constant(ir.VectorType(kind, 8), ir.Undefined)
    for i in range(8):
        at = builder.add(address, ir.Constant(I64, i * stride))
        found = builder.insert_element(found, builder.load(pointer(builder, kind, at), align=1), ir.Constant(I32, i))
    return found


def strided(element: str, stride: int, end: int) -> Any:
    """Make a function that reads 8 numbers at an address, `stride` bytes apart; bytes up to `end` may be touched."""
    kind = ELEMENTS[element]

    @operation(lambda address: Vec(element, 8))
    def strided(builder, address):
        """Read 8 numbers."""
        if SET == "avx512":
            return _from_vectors(builder, address, kind, stride, end)
        return _one_by_one(builder, address, kind, stride)

    return strided


def halves(stride: int, end: int) -> Any:
    """Make a function that reads 8 float16 as `strided` does, and gives them as float32."""
    read = strided("i16", stride, end)

    def halves(at: Number) -> Value:
        """Read 8 float16."""
        return from_half(read(at))

    return halves


def spread(d: Value) -> list[Value]:
    """Spread 8 scales over 256 weights, each lane for 4: 4 vectors."""
    return [two(d) for two in PAIRS]
