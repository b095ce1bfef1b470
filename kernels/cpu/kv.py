"""Append rows to caches of float16: each row may have a cache of its own.

T rows, Hkv key/value heads, dh head size.
"""

from .compiled import kernel
from .lanes import to_half
from .launch import Launch, arguments
from .simd import f32x16, i64, load, load_some, store, store_some, words
from .traced import Number, loop, when

WORTH = 8192  # numbers that are worth a thread


def _round(x: Number, out: Number, width: Number) -> None:
    """Round `width` float32 to float16, to the nearest, ties to even."""
    rest = width % 16
    for i in loop(0, width - rest, 16):
        store(to_half(load(f32x16, x + 4 * i)), out + 2 * i)
    with when(rest != 0):
        i = width - rest
        store_some(to_half(load_some(f32x16, rest, x + 4 * i)), rest, out + 2 * i)


@kernel
def appended(args: Number, first: Number, end: Number) -> None:
    """Write heads of rows at their positions: an item is one head of one row."""
    k, v, table, positions, heads, width = words(args, 6)
    for item in loop(first, end):
        t, row = item // heads, table + 24 * (item // heads)
        to = (item % heads) * load(i64, row + 16) + 2 * width * load(i64, positions + 8 * t)
        _round(k + 4 * width * item, load(i64, row) + to, width)
        _round(v + 4 * width * item, load(i64, row + 8) + to, width)


def append(k: int, v: int, table: int, positions: int, rows: int, n_head_kv: int, head_size: int) -> Launch:
    """Write each row's keys and values at its position of its cache.  (T, Hkv, dh) (T, Hkv, dh) (T, 3) (T,)

    k, v: addresses of float32. table, positions: addresses of int64; a row of the table is the address of its keys, of
    its values, (Hkv, room, dh) float16, and the bytes from head to head. What float16 cannot hold becomes infinity."""
    args = arguments(k, v, table, positions, n_head_kv, head_size)
    return Launch(appended, args, rows * n_head_kv, max(1, WORTH // (2 * head_size)))
