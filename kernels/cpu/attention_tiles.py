"""Multiply queries by keys, and weights by values, for a few query heads that share them.

q and sums are float32, keys and values float16. `TILE` accumulators of 16 lanes are kept in registers: 1, 2 or 4 heads
beside as many keys, or vectors of a value, as that leaves, so that what is read from memory is converted once.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .lanes import half_to_float
from .simd import I32, I64, SET, call, constant, filled, first_lanes, operation, pointer, shuffled

TILE = 16 if SET == "avx512" else 4
AHEAD = 32
"""Keys and values that are asked for before they are read. Without that, memory gives two thirds as much."""
FLOAT, WORD = ir.FloatType(), ir.IntType(16)
VECTOR, WORDS = ir.VectorType(FLOAT, 16), ir.VectorType(WORD, 16)


def _times(builder: Any, number: Any, size: int) -> Any:
    return builder.mul(number, ir.Constant(I64, size))


def _floats(builder: Any, address: Any) -> Any:
    return builder.load(pointer(builder, VECTOR, address), align=4)


def _halves(builder: Any, address: Any, count: Any) -> Any:
    """Read 16 float16, or the first `count` and zeros, as float32."""
    at = pointer(builder, WORDS, address)
    if count is None:
        return half_to_float(builder, builder.load(at, align=2))
    mask = first_lanes(builder, WORDS, count)
    words = call(builder, "llvm.masked.load.v16i16.p0", WORDS, at, ir.Constant(I32, 2), mask, constant(WORDS, 0))
    return half_to_float(builder, words)


def _fetch(builder: Any, address: Any, bytes_on: Any) -> Any:
    """Ask for the memory so far behind an address, which is wanted soon."""
    at = pointer(builder, ir.IntType(8), builder.add(address, bytes_on))
    call(builder, "llvm.prefetch.p0", ir.VoidType(), at, *(ir.Constant(I32, i) for i in (0, 3, 1)))


def _fused(builder: Any, a: Any, b: Any, total: Any) -> None:
    """Add a b to a variable."""
    builder.store(call(builder, "llvm.fmuladd.v16f32", VECTOR, a, b, builder.load(total)), total)


def _sums(builder: Any, vectors: Sequence[Any]) -> Any:
    """Return the sums of the lanes of a power of two of vectors, side by side."""
    group = 16
    while group > 1:
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0], vectors[0])]
        n = vectors[0].type.count
        lower = [i for i in range(n) if i % group < group // 2]
        both = lower if len(vectors) == 1 else lower + [n + i for i in lower]
        upper = [i + group // 2 for i in both]
        vectors = [builder.fadd(shuffled(builder, a, b, both), shuffled(builder, a, b, upper)) for a, b in pairs]
        group //= 2
    return vectors[0]


def dots(heads: int) -> Any:
    """Make a function that writes the scores of `heads` queries and TILE / heads keys."""
    keys = TILE // heads

    @operation(lambda *_: types.void)
    def dots(builder, q, q_row, key, key_row, count, width, out, out_row):
        """Write q k: rows of q and of the scores lie so many bytes apart. Keys from `count` on are the last one."""
        last = builder.sub(count, ir.Constant(I64, 1))
        places = []
        for k in range(keys):
            index = ir.Constant(I64, k)
            index = builder.select(builder.icmp_signed("<", index, last), index, last)
            places.append(builder.add(key, builder.mul(key_row, index)))
        queries = [builder.add(q, _times(builder, q_row, h)) for h in range(heads)]
        totals = [cgutils.alloca_once_value(builder, constant(VECTOR, 0.0)) for _ in range(TILE)]
        ahead = _times(builder, key_row, AHEAD)

        def add(at, rest=None):
            wide = [_floats(builder, builder.add(place, _times(builder, at, 4))) for place in queries]
            for k, place in enumerate(places):
                here = builder.add(place, _times(builder, at, 2))
                _fetch(builder, here, ahead)
                x = _halves(builder, here, rest)
                for h in range(heads):
                    _fused(builder, wide[h], x, totals[h * keys + k])

        rest = builder.and_(width, ir.Constant(I64, 15))
        whole = builder.sub(width, rest)
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), whole, ir.Constant(I64, 16)) as (at, _):
            add(at)
        with builder.if_then(builder.icmp_signed("!=", rest, ir.Constant(I64, 0))):
            add(whole, rest)
        found = _sums(builder, [builder.load(total) for total in totals])
        for h in range(heads):
            part = shuffled(builder, found, found, range(h * keys, h * keys + keys))
            to = builder.add(out, _times(builder, out_row, h))
            builder.store(part, pointer(builder, part.type, to), align=4)

    return dots


def weighted(heads: int, vectors: int, some: bool = False) -> Any:
    """Make a function that adds weighted values to `heads` sums of 16 * `vectors` lanes; or of fewer than 16."""

    @operation(lambda *_: types.void)
    def weighted(builder, weights, weights_row, value, value_row, count, factors, out, out_row, lanes):
        """Multiply the sums by a factor each, and add w v for `count` values. Only `lanes` are read, if so made."""
        totals, ahead = {}, _times(builder, value_row, AHEAD)
        for h in range(heads):
            factor = builder.load(pointer(builder, FLOAT, builder.add(factors, ir.Constant(I64, 4 * h))))
            for c in range(vectors):
                to = builder.add(builder.add(out, _times(builder, out_row, h)), ir.Constant(I64, 64 * c))
                before = builder.fmul(_floats(builder, to), filled(builder, VECTOR, factor))
                totals[h, c] = to, cgutils.alloca_once_value(builder, before)
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), count, ir.Constant(I64, 1)) as (j, _):
            row = builder.add(value, builder.mul(value_row, j))
            for c in range(0, vectors, 2):
                _fetch(builder, builder.add(row, ir.Constant(I64, 32 * c)), ahead)
            x = [
                _halves(builder, builder.add(row, ir.Constant(I64, 32 * c)), lanes if some else None)
                for c in range(vectors)
            ]
            for h in range(heads):
                at = builder.add(builder.add(weights, _times(builder, weights_row, h)), _times(builder, j, 4))
                weight = filled(builder, VECTOR, builder.load(pointer(builder, FLOAT, at)))
                for c in range(vectors):
                    _fused(builder, weight, x[c], totals[h, c][1])
        for to, total in totals.values():
            builder.store(builder.load(total), pointer(builder, VECTOR, to), align=4)

    return weighted
