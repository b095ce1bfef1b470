"""Read rows of a matrix in the blocks of its file: as float32, or as bfloat16 for products of many rows.

n rows of K weights, of any type that `matvec` takes. A row is one item. float32 rows have the bits of
`ops.numpy_quants`; a bfloat16 is the nearest to those, the even one of two, but for numbers below 2^-126: a processor
that rounds to bfloat16 itself makes them 0, and would take them for 0 where it multiplies.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from llvmlite import ir

from llava_ref.gguf.types import TYPES

from . import lanes
from .compiled import Kernel
from .decode.fields import whole
from .launch import Launch, arguments
from .llvm import ELEMENTS, Kind, call
from .processor import BF16
from .simd import f32x16, i16x16, i64, load, load_some, real, store, store_some, words
from .traced import Number, Value, loop, operation, when
from .typed import DENSE, QUANTISED, layout

SUPPORTED = QUANTISED | DENSE
WORTH = 1 << 16
"""Weights that are worth a thread."""


@operation
def _rounded_at_once(builder, x):
    """Round 16 float32 to bfloat16, by an instruction for it: int16 lanes, its bits."""
    return call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", ir.VectorType(ELEMENTS["i16"], 16), x)


rounded = _rounded_at_once if BF16 else lanes.to_bfloat16


def put_floats(out: Any, index: int, q: Value, zero: int, f: Value, m: Number) -> None:
    """Store 16 weights times a scale.  out: address and scale"""
    store((f * (whole(q) - zero) - m) * out[1], out[0] + 4 * index)


def put_bfloat16(out: Any, index: int, q: Value, zero: int, f: Value, m: Number) -> None:
    """Store 16 weights as bfloat16.  out: address, and bytes from 32 weights to the next 32"""
    store(rounded(f * (whole(q) - zero) - m), out[0] + (index >> 5) * out[1] + 2 * (index & 31))


def _floats_of_blocks(kind: str, args: Number, first: Number, end: Number) -> None:
    """Decode the rows that ids name."""
    blocks, K, ids, out, scale = words(args, 5)
    block, weights, size = layout(kind), TYPES[kind].weights, TYPES[kind].bytes
    for row in loop(first, end):
        at = blocks + load(i64, ids + 8 * row) * (K // weights * size)
        for b in loop(0, K // weights):
            block(at + b * size, put_floats, (out + 4 * (row * K + b * weights), real(scale)))


def _bfloat16_of_blocks(kind: str, args: Number, first: Number, end: Number) -> None:
    """Decode rows side by side, and round them."""
    blocks, row_bytes, K, start, out, row_stride, group_stride, panel, panel_stride = words(args, 9)
    block, weights, size = layout(kind), TYPES[kind].weights, TYPES[kind].bytes
    for row in loop(first, end):
        at, to = blocks + (start + row) * row_bytes, out + row // panel * panel_stride + row % panel * row_stride
        for b in loop(0, K // weights):
            block(at + b * size, put_bfloat16, (to + b * (weights // 32) * group_stride, group_stride))


def _floats_of_numbers(kind: str, args: Number, first: Number, end: Number) -> None:
    """Convert the rows that ids name."""
    numbers, K, ids, out, scale = words(args, 5)
    (lanes, floats), size, rest = READ[kind], TYPES[kind].bytes, K % 16
    for row in loop(first, end):
        at, to = numbers + load(i64, ids + 8 * row) * K * size, out + 4 * row * K
        for i in loop(0, K - rest, 16):
            store(floats(load(lanes, at + size * i)) * real(scale), to + 4 * i)
        with when(rest != 0):
            last = floats(load_some(lanes, rest, at + size * (K - rest)))
            store_some(last * real(scale), rest, to + 4 * (K - rest))


def _bfloat16_of_numbers(kind: str, args: Number, first: Number, end: Number) -> None:
    """Round rows side by side."""
    numbers, row_bytes, K, start, out, row_stride, group_stride, panel, panel_stride = words(args, 9)
    (lanes, floats), size, rest = READ[kind], TYPES[kind].bytes, K % 16
    for row in loop(first, end):
        at, to = numbers + (start + row) * row_bytes, out + row // panel * panel_stride + row % panel * row_stride
        for i in loop(0, K - rest, 16):
            store(rounded(floats(load(lanes, at + size * i))), to + (i >> 5) * group_stride + 2 * (i & 31))
        with when(rest != 0):
            i = K - rest
            found = rounded(floats(load_some(lanes, rest, at + size * i)))
            store_some(found, rest, to + (i >> 5) * group_stride + 2 * (i & 31))


def same(x: Value) -> Value:
    """Return x."""
    return x


READ: dict[str, tuple[Kind, Callable[[Value], Value]]] = {
    "F16": (i16x16, lanes.from_half),
    "BF16": (i16x16, lanes.from_bfloat16),
    "F32": (f32x16, same),
}
"""Of types without blocks: the vector that 16 weights are loaded as, and what makes them float32."""


@cache
def _floats(kind: str) -> Kernel:
    """Return the kernel of `rows`."""
    body = _floats_of_blocks if kind in QUANTISED else _floats_of_numbers
    return Kernel(f"rows.floats.{kind.lower()}", partial(body, kind))


@cache
def widening(kind: str) -> Kernel:
    """Return the kernel of `widened`. Its arguments are K of the `row_bytes` bytes of a row, from `blocks` on; rows lie
    in panels of `panel` rows, `panel_stride` bytes apart."""
    body = _bfloat16_of_blocks if kind in QUANTISED else _bfloat16_of_numbers
    return Kernel(f"rows.bfloat16.{kind.lower()}", partial(body, kind))


def _launch(kernel: Kernel, K: int, n: int, *values: int | float) -> Launch:
    return Launch(kernel, arguments(*values), n, 1 + WORTH // max(K, 1))


def rows(kind: str, blocks: int, K: int, ids: int, n: int, out: int, scale: float = 1.0) -> Launch:
    """Read n rows, those that the int64 at `ids` name, as float32, and multiply them by `scale`.  out (n, K) float32"""
    return _launch(_floats(kind), K, n, blocks, K, ids, out, float(scale))


def widened(
    kind: str, blocks: int, K: int, first: int, n: int, out: int, *, row_stride: int = 0, group_stride: int = 64
) -> Launch:
    """Read n rows from row `first` on, as bfloat16.  out (n, K) bfloat16

    Strides are in bytes: a row begins `row_stride` behind the one before it (0: 2 K), and each 32 weights of a row
    `group_stride` behind the 32 before them."""
    row_bytes = K // TYPES[kind].weights * TYPES[kind].bytes
    strides = row_stride or 2 * K, group_stride
    return _launch(widening(kind), K, n, blocks, row_bytes, K, first, out, *strides, max(n, 1), 0)
