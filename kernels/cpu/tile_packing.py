"""Lay queries, keys and values out as tiles of bfloat16.   S keys, dh head size, D = dh up to 32s.

A number is 1 bfloat16, or 2: the second, what is left of it, stands `term` bytes behind.
"""

from typing import Any

from llvmlite import ir

from .amx import normal
from .compiled import kernel
from .lanes import convert_unsigned, from_bfloat16, from_half, join, lower, to_bfloat16, upper
from .llvm import ELEMENTS, I32, I64, Kind, call, pointer, shuffled
from .processor import BF16
from .rows import rounded
from .simd import f32x16, i16x16, i32x16, load_some, store, words
from .traced import Number, Value, loop, operation, pick, when


@operation
def transpose(builder, address):
    """Swap rows and columns of 16 rows of 16 numbers of 4 bytes, at an address."""
    kind = ir.VectorType(I32, 16)
    places = [pointer(builder, kind, builder.add(address, ir.Constant(I64, 64 * i))) for i in range(16)]
    rows = [builder.load(place, align=64) for place in places]
    for k in (1, 2, 4, 8):
        low = [i if not i & k else 16 + i - k for i in range(16)]
        high = [i + k if not i & k else 16 + i for i in range(16)]
        for i in range(16):
            if not i & k:
                a, b = rows[i], rows[i + k]
                rows[i], rows[i + k] = shuffled(builder, a, b, low), shuffled(builder, a, b, high)
    for row, place in zip(rows, places, strict=True):
        builder.store(row, place, align=64)


def interleaved(a: Value, b: Value) -> Value:
    """Put words of a below those of b: 16 pairs."""
    return convert_unsigned(i32x16, a) | convert_unsigned(i32x16, b) << 16


@operation
def _rounded_at_once(builder, a, b):
    """Round 32 float32 by an instruction for it."""
    return call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", ir.VectorType(ELEMENTS["i16"], 32), b, a)


def rounded_pair(a: Value, b: Value) -> Value:
    """Round 32 float32 to bfloat16, to the nearest, ties to even, subnormal ones to 0: int16 lanes, their bits."""
    return _rounded_at_once(a, b) if BF16 else join(to_bfloat16(normal(a)), to_bfloat16(normal(b)))


def pack_row(a: Value, b: Value, out: Number, term: Any = None) -> None:
    """Write 32 numbers as bfloat16, and what is left of them `term` bytes behind, if that is told."""
    high = rounded_pair(a, b)
    store(high, out)
    if term is not None:
        store(rounded_pair(a - from_bfloat16(lower(high)), b - from_bfloat16(upper(high))), out + term)


def _read(kind: Kind, address: Number, count: Number) -> Value:
    """Read up to 16 float16 or float32, zeros behind them."""
    x = load_some(kind, count, address)
    return from_half(x) if kind == i16x16 else x


def _pack_keys(kind, keys, row, start, S, width, out, chunks, term):
    """Lay 32 keys out as tiles of 16 keys (columns) and 32 channels (pairs of rows)."""
    size = 2 if kind == i16x16 else 4
    for tile in loop(0, 2):
        for chunk in loop(0, chunks):
            to = out + 1024 * (tile * chunks + chunk)
            for r in loop(0, 16):
                key = start + 16 * tile + r
                at, count = keys + row * key + 32 * size * chunk, pick(key < S, width - 32 * chunk, 0)
                pack_row(_read(kind, at, count), _read(kind, at + 16 * size, count - 16), to + 64 * r, term)
            transpose(to)
            transpose(to + term)


def _pack_values(kind, values, row, start, S, width, out, chunks, term):
    """Lay 32 values out as tiles of 16 channels (columns) and 32 keys (pairs of rows)."""
    size = 2 if kind == i16x16 else 4
    for pair in loop(0, 16):
        key = start + 2 * pair
        for tile in loop(0, 2 * chunks):
            at, count = values + row * key + 16 * size * tile, width - 16 * tile
            a = _read(kind, at, pick(key < S, count, 0))
            b = _read(kind, at + row, pick(key + 1 < S, count, 0))
            to, high_a, high_b = out + 1024 * tile + 64 * pair, rounded(a), rounded(b)
            store(interleaved(high_a, high_b), to)
            low_a, low_b = rounded(a - from_bfloat16(high_a)), rounded(b - from_bfloat16(high_b))
            store(interleaved(low_a, low_b), to + term)


@kernel
def packed(args: Number, first: Number, end: Number) -> None:
    """Lay keys and values out as tiles, two terms a number: an item is 32 of one head."""
    keys, values, row, head, S, width, half, blocks, chunks, to_keys, to_values, term = words(args, 12)
    for kind in i16x16, f32x16:
        with when((half != 0) == (kind == i16x16)):
            for item in loop(first, end):
                apart, start, behind = head * (item // blocks), 32 * (item % blocks), 2048 * chunks * item
                _pack_keys(kind, keys + apart, row, start, S, width, to_keys + behind, chunks, term)
                _pack_values(kind, values + apart, row, start, S, width, to_values + behind, chunks, term)
