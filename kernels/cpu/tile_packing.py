"""Lay queries, keys and values out as tiles of bfloat16.   S keys, dh head size, D = dh up to 32s.

A number is 1 bfloat16, or 2: the second, what is left of it, stands `term` bytes behind.
"""

from llvmlite import ir
from numba import types

from .functions import inlined, kernel
from .lanes import from_bfloat16, from_half, lower, upper
from .rows import rounded
from .simd import I32, I64, call, constant, f32x16, i16x16, i16x32, load_some, operation, pointer, shuffled, store
from .words import words

TWELVE = words(12)


@operation(lambda address: types.void)
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


@operation(lambda a, b: f32x16)
def interleaved(builder, a, b):
    """Put words of a below those of b: 16 pairs."""
    wide = ir.VectorType(I32, 16)
    pairs = builder.or_(builder.zext(a, wide), builder.shl(builder.zext(b, wide), constant(wide, 16)))
    return builder.bitcast(pairs, ir.VectorType(ir.FloatType(), 16))


@inlined
def _read(address, count, half):
    """Read up to 16 float16 or float32, zeros behind them."""
    count = max(0, min(16, count))
    if half:
        return from_half(load_some(i16x16, count, address))
    return load_some(f32x16, count, address)


@operation(lambda a, b: i16x32)
def rounded_pair(builder, a, b):
    """Round 32 float32 to bfloat16, to the nearest, ties to even: their bits."""
    return call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", ir.VectorType(ir.IntType(16), 32), b, a)


@inlined
def pack_row(a, b, out, term):
    """Write 32 numbers as bfloat16, and what is left of them `term` bytes behind, if that is not 0."""
    high = rounded_pair(a, b)
    store(high, out)
    if term:
        store(rounded_pair(a - from_bfloat16(lower(high)), b - from_bfloat16(upper(high))), out + term)


@inlined
def _pack_keys(keys, row, size, start, S, width, half, out, chunks, term):
    """Lay 32 keys out as tiles of 16 keys (columns) and 32 channels (pairs of rows)."""
    for tile in range(2):
        for chunk in range(chunks):
            to = out + 1024 * (tile * chunks + chunk)
            for r in range(16):
                key = start + 16 * tile + r
                at, count = keys + row * key + size * 32 * chunk, (width - 32 * chunk if key < S else 0)
                pack_row(_read(at, count, half), _read(at + 16 * size, count - 16, half), to + 64 * r, term)
            transpose(to)
            if term:
                transpose(to + term)


@inlined
def _pack_values(values, row, size, start, S, width, half, out, chunks, term):
    """Lay 32 values out as tiles of 16 channels (columns) and 32 keys (pairs of rows)."""
    for pair in range(16):
        key = start + 2 * pair
        for tile in range(2 * chunks):
            at, count = values + row * key + 16 * size * tile, width - 16 * tile
            a = _read(at, count if key < S else 0, half)
            b = _read(at + row, count if key + 1 < S else 0, half)
            to, high_a, high_b = out + 1024 * tile + 64 * pair, rounded(a), rounded(b)
            store(interleaved(high_a, high_b), to)
            if term:
                low_a, low_b = rounded(a - from_bfloat16(high_a)), rounded(b - from_bfloat16(high_b))
                store(interleaved(low_a, low_b), to + term)


@kernel
def packed(args, first, end):
    """Lay keys and values out as tiles: an item is 32 of one head."""
    keys, values, row, head, S, width, half, blocks, chunks, to_keys, to_values, term = TWELVE(args)
    size = 2 if half else 4
    for item in range(first, end):
        apart, start, behind = head * (item // blocks), 32 * (item % blocks), 2048 * chunks * item
        _pack_keys(keys + apart, row, size, start, S, width, half, to_keys + behind, chunks, term)
        _pack_values(values + apart, row, size, start, S, width, half, to_values + behind, chunks, term)
