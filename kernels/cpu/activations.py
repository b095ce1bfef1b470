"""Round rows of x to 15 bits and a sign for products with quantised matrices.

256 numbers share a scale d = max |x| / 32767: the error is 1 / 65534 of the largest, 3e-5 of a normal row's size, where
8 bits would give 5e-3. Two int16 codes are multiplied and added by one instruction, as four int8 would be, and no sum
overflows 32 bits (blocks/__init__.py).

A row of K numbers, padded with zeros to n * 256, is three fields: codes (n, 512 bytes): of each 64 codes the 32 at even
places, then the 32 at odd ones, as unpacking bytes to words leaves weights; sums (n, 16) float32: d times the sum of 16
codes, for minima and offsets of weights; scales (n,) float32: d.
"""

from dataclasses import dataclass

import numpy as np
from numba import types

from .functions import inlined, kernel
from .lanes import absolute, bits, convert, join, larger, largest, shuffle_two, total
from .launch import Launch, arguments
from .simd import f32x16, i16x16, i32x16, load, load_some, splat, store

GROUP = 256
CODES, SUMS = 2 * GROUP, 4 * 16  # bytes a group
WHOLE = 1.5 * 2.0**23
"""Added to a number of up to 22 bits, it leaves the nearest whole number in the lowest bits."""
SMALLEST = 1e-33
"""Numbers below are zeros: the scale's inverse would be beyond float32."""
EVEN, ODD = shuffle_two(*range(0, 64, 2)), shuffle_two(*range(1, 64, 2))


@dataclass(frozen=True, slots=True)
class Activations:
    """Room for rounded rows of K numbers."""

    address: int
    K: int
    row_bytes: int
    groups: int
    room: np.ndarray

    @classmethod
    def of(cls, rows: int, K: int) -> "Activations":
        """Allocate room for `rows` rows."""
        groups = -(-K // GROUP)
        row_bytes = groups * (CODES + SUMS) + -(-groups * 4 // 64) * 64
        room = np.zeros(rows * row_bytes + 64, np.uint8)
        return cls(room.ctypes.data + -room.ctypes.data % 64, K, row_bytes, groups, room)


@inlined
def largest_of(x, count):
    """Return the largest size of `count` numbers, at most 256; NaN where one is infinite or no number."""
    most, odd = splat(f32x16, 0.0), splat(f32x16, 0.0)
    for i in range(0, count, 16):
        values = load_some(f32x16, count - i, x + 4 * i)
        most = larger(absolute(values), most)
        odd = odd + values * 0.0
    return largest(most) + total(odd)


@inlined
def codes_of(x, count, inverse):
    """Round 16 numbers, of which `count` are there, to int32."""
    scaled = load_some(f32x16, count, x) * inverse + WHOLE
    return bits(i32x16, scaled) - bits(i32x16, splat(f32x16, WHOLE))


@inlined
def round_group(x, count, codes, sums, scale):
    """Round 256 numbers, of which `count` are there."""
    most = largest_of(x, min(count, GROUP))
    d, inverse = most / types.float32(32767), types.float32(32767) / most
    if most < SMALLEST:
        d = inverse = types.float32(0)
    store(d, scale)
    for i in range(0, GROUP, 64):
        a, b = codes_of(x + 4 * i, count - i, inverse), codes_of(x + 4 * i + 64, count - i - 16, inverse)
        c, e = codes_of(x + 4 * i + 128, count - i - 32, inverse), codes_of(x + 4 * i + 192, count - i - 48, inverse)
        low = join(convert(i16x16, a), convert(i16x16, b))
        high = join(convert(i16x16, c), convert(i16x16, e))
        store(EVEN(low, high), codes + 2 * i)
        store(ODD(low, high), codes + 2 * i + 64)
        store(d * types.float32(total(a)), sums + i // 4)
        store(d * types.float32(total(b)), sums + i // 4 + 4)
        store(d * types.float32(total(c)), sums + i // 4 + 8)
        store(d * types.float32(total(e)), sums + i // 4 + 12)


@kernel
def round_rows(args, first, end):
    """Round groups of 256 numbers, counted through all rows."""
    x, stride, K = load(types.int64, args), load(types.int64, args + 8), load(types.int64, args + 16)
    out, row_bytes = load(types.int64, args + 24), load(types.int64, args + 32)
    groups = (K + GROUP - 1) // GROUP
    for i in range(first, end):
        t, g = i // groups, i % groups
        row, at = out + t * row_bytes, x + t * stride + g * 4 * GROUP
        sums, scales = row + groups * CODES, row + groups * (CODES + SUMS)
        round_group(at, K - g * GROUP, row + g * CODES, sums + g * SUMS, scales + 4 * g)


def quantise(x_address: int, row_stride: int, out: Activations, rows: int) -> Launch:
    """Round rows of float32, `row_stride` numbers apart."""
    args = arguments(x_address, 4 * row_stride, out.K, out.address, out.row_bytes)
    return Launch(round_rows, args, rows * out.groups, 64)
