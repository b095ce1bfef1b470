"""Read rows of a matrix in the blocks of its file: as float32, or as bfloat16 for products of many rows.

n rows of K weights, of any type that `matvec` takes. A row is one item. float32 rows have the bits of
`ops.numpy_quants`; a bfloat16 is the nearest to those, the even one of two, but for numbers below 2^-126: a processor
that rounds to bfloat16 itself makes them 0, and would take them for 0 where it multiplies.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba import int64

from llava_ref.gguf.types import TYPES

from . import lanes, simd
from .decode.fields import whole
from .functions import Kernel, inlined
from .launch import Launch, arguments
from .simd import call, f32x16, i16x16, load, load_some, operation, store, store_some
from .typed import BLOCK, BYTES, QUANTISED, WEIGHTS, for_types, named
from .words import real, words

SUPPORTED = QUANTISED | {"F16", "BF16", "F32"}
WORTH = 1 << 16
"""Weights that are worth a thread."""
FIVE, NINE = words(5), words(9)
LANES: Any = None
NUMBERS: Any = None
SIZE = 0
"""Of a type without blocks: what 16 weights are loaded as, the function that makes them float32, the bytes of one."""


@operation(lambda x: i16x16)
def _rounded_at_once(builder, x):
    """Round 16 float32 to bfloat16, by an instruction for it: int16 lanes, its bits."""
    return call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", ir.VectorType(simd.ELEMENTS["i16"], 16), x)


rounded = _rounded_at_once if simd.BF16 else lanes.to_bfloat16


@inlined
def put_floats(out, index, q, zero, f, m):
    """Store 16 weights times a scale.  out: address and scale"""
    store((f * (whole(q) - zero) - m) * out[1], out[0] + 4 * index)


@inlined
def put_bfloat16(out, index, q, zero, f, m):
    """Store 16 weights as bfloat16.  out: address, and bytes from 32 weights to the next 32"""
    store(rounded(f * (whole(q) - zero) - m), out[0] + (index >> 5) * out[1] + 2 * (index & 31))


@for_types
def floats_of_blocks(args, first, end):
    """Decode the rows that ids name."""
    blocks, K, ids, out, scale = FIVE(args)
    for row in range(first, end):
        at = blocks + load(int64, ids + 8 * row) * (K // WEIGHTS * BYTES)
        for b in range(K // WEIGHTS):
            BLOCK(at + b * BYTES, put_floats, (out + 4 * (row * K + b * WEIGHTS), real(scale)))


@for_types
def bfloat16_of_blocks(args, first, end):
    """Decode rows side by side, and round them."""
    blocks, row_bytes, K, start, out, row_stride, group_stride, panel, panel_stride = NINE(args)
    for row in range(first, end):
        at, to = blocks + (start + row) * row_bytes, out + row // panel * panel_stride + row % panel * row_stride
        for b in range(K // WEIGHTS):
            BLOCK(at + b * BYTES, put_bfloat16, (to + b * (WEIGHTS // 32) * group_stride, group_stride))


def floats_of_numbers(args, first, end):
    """Convert the rows that ids name."""
    numbers, K, ids, out, scale = FIVE(args)
    rest = K % 16
    for row in range(first, end):
        at, to = numbers + load(int64, ids + 8 * row) * K * SIZE, out + 4 * row * K
        for i in range(0, K - rest, 16):
            store(NUMBERS(load(LANES, at + SIZE * i)) * real(scale), to + 4 * i)
        if rest:
            last = NUMBERS(load_some(LANES, rest, at + SIZE * (K - rest)))
            store_some(last * real(scale), rest, to + 4 * (K - rest))


def bfloat16_of_numbers(args, first, end):
    """Round rows side by side."""
    numbers, row_bytes, K, start, out, row_stride, group_stride, panel, panel_stride = NINE(args)
    rest = K % 16
    for row in range(first, end):
        at, to = numbers + (start + row) * row_bytes, out + row // panel * panel_stride + row % panel * row_stride
        for i in range(0, K - rest, 16):
            found = rounded(NUMBERS(load(LANES, at + SIZE * i)))
            store(found, to + (i >> 5) * group_stride + 2 * (i & 31))
        if rest:
            i = K - rest
            found = rounded(NUMBERS(load_some(LANES, rest, at + SIZE * i)))
            store_some(found, rest, to + (i >> 5) * group_stride + 2 * (i & 31))


@inlined
def same(x):
    """Return x."""
    return x


READ = {"F16": (i16x16, lanes.from_half), "BF16": (i16x16, lanes.from_bfloat16), "F32": (f32x16, same)}


@cache
def _of_numbers(kind: str, to: Any) -> Kernel:
    vector, numbers = READ[kind]
    return named(to, kind.lower(), LANES=vector, NUMBERS=numbers, SIZE=TYPES[kind].bytes)


def widening(kind: str) -> Kernel:
    """Return the kernel of `widened`. Its arguments are K of the `row_bytes` bytes of a row, from `blocks` on; rows lie
    in panels of `panel` rows, `panel_stride` bytes apart."""
    return bfloat16_of_blocks(kind) if kind in QUANTISED else _of_numbers(kind, bfloat16_of_numbers)


def _launch(kernel: Kernel, K: int, n: int, *values: int | float) -> Launch:
    return Launch(kernel, arguments(*values), n, 1 + WORTH // max(K, 1))


def rows(kind: str, blocks: int, K: int, ids: int, n: int, out: int, scale: float = 1.0) -> Launch:
    """Read n rows, those that the int64 at `ids` name, as float32, and multiply them by `scale`.  out (n, K) float32"""
    kernel = floats_of_blocks(kind) if kind in QUANTISED else _of_numbers(kind, floats_of_numbers)
    return _launch(kernel, K, n, blocks, K, ids, out, float(scale))


def widened(
    kind: str, blocks: int, K: int, first: int, n: int, out: int, *, row_stride: int = 0, group_stride: int = 64
) -> Launch:
    """Read n rows from row `first` on, as bfloat16.  out (n, K) bfloat16

    Strides are in bytes: a row begins `row_stride` behind the one before it (0: 2 K), and each 32 weights of a row
    `group_stride` behind the 32 before them."""
    row_bytes = K // TYPES[kind].weights * TYPES[kind].bytes
    strides = row_stride or 2 * K, group_stride
    return _launch(widening(kind), K, n, blocks, row_bytes, K, first, out, *strides, max(n, 1), 0)
