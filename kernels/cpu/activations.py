"""Round rows of x to 15 bits and a sign for products with quantised matrices.

256 numbers share a scale d = max |x| / 32767: the error is 1 / 65534 of the largest, 3e-5 of a normal row's size, where
8 bits would give 5e-3. Two int16 codes are multiplied and added by one instruction, as four int8 would be, and no sum
overflows 32 bits (blocks/__init__.py).

A row of K numbers, padded with zeros to n * 256, is three fields: codes (n, 512 bytes): of each 64 codes the 32 at even
places, then the 32 at odd ones, as unpacking bytes to words leaves weights; sums (n, 16) float32: d times the sum of 16
codes, for minima and offsets of weights; scales (n,) float32: d.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .compiled import kernel
from .lanes import absolute, bits, convert, join, larger, largest, shuffle_two, total
from .launch import Launch, arguments
from .simd import f32, f32x16, i16x16, i32x16, i64, load, load_some, splat, store
from .traced import Number, loop, pick

GROUP = 256
CODES, SUMS = 2 * GROUP, 4 * 16  # bytes a group
WHOLE = 1.5 * 2.0**23
"""Added to a number of up to 22 bits, it leaves the nearest whole number in the lowest bits."""
SMALLEST = 1e-33
"""Numbers below are zeros: the scale's inverse would be beyond float32."""
EVEN, ODD = shuffle_two(*range(0, 64, 2)), shuffle_two(*range(1, 64, 2))


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """Room for rounded rows of K numbers."""

    address: int
    K: int
    row_bytes: int
    groups: int
    room: np.ndarray

    @classmethod
    def of(cls, rows: int, K: int) -> "RoundedRows":
        """Allocate room for `rows` rows."""
        groups = -(-K // GROUP)
        row_bytes = groups * (CODES + SUMS) + -(-groups * 4 // 64) * 64
        room = np.zeros(rows * row_bytes + 64, np.uint8)
        return cls(room.ctypes.data + -room.ctypes.data % 64, K, row_bytes, groups, room)


def sixteen(x: Number, count: Number, i: int) -> Any:
    """Load numbers 16 i to 16 i + 15 of a group of which `count` are there; the others are 0."""
    return load_some(f32x16, count - 16 * i, x + 64 * i)


def scale_of(numbers: list[Any]) -> tuple[Any, Any]:
    """Return a group's scale and what to multiply by; the scale is NaN where a number is infinite or none."""
    most, odd = absolute(numbers[0]), numbers[0] * 0.0
    for values in numbers[1:]:
        most, odd = larger(absolute(values), most), odd + values * 0.0
    size = largest(most) + total(odd)
    none = size < SMALLEST
    return pick(none, 0.0, size / 32767.0), pick(none, 0.0, 32767.0 / size)


def round_group(x: Number, count: Number, codes: Number, sums: Number, scale: Number) -> None:
    """Round 256 numbers, of which `count` are there."""
    numbers = [sixteen(x, count, i) for i in range(16)]
    d, inverse = scale_of(numbers)
    store(d, scale)
    rounded = [bits(i32x16, values * inverse + WHOLE) - bits(i32x16, splat(f32x16, WHOLE)) for values in numbers]
    for i, values in enumerate(rounded):
        store(d * convert(f32, total(values)), sums + 4 * i)
    for i in range(0, 16, 4):
        a, b, c, e = (convert(i16x16, values) for values in rounded[i : i + 4])
        low, high = join(a, b), join(c, e)
        store(EVEN(low, high), codes + 32 * i)
        store(ODD(low, high), codes + 32 * i + 64)


@kernel
def round_rows(args: Number, first: Number, end: Number) -> None:
    """Round groups of 256 numbers, counted through all rows."""
    x, stride, K, out, row_bytes = (load(i64, args + 8 * i) for i in range(5))
    groups = (K + GROUP - 1) // GROUP
    for i in loop(first, end):
        t, g = i // groups, i % groups
        row, at = out + t * row_bytes, x + t * stride + g * 4 * GROUP
        sums, scales = row + groups * CODES, row + groups * (CODES + SUMS)
        round_group(at, K - g * GROUP, row + g * CODES, sums + g * SUMS, scales + 4 * g)


def quantise(x_address: int, row_stride: int, out: RoundedRows, rows: int) -> Launch:
    """Round rows of float32, `row_stride` numbers apart."""
    args = arguments(x_address, 4 * row_stride, out.K, out.address, out.row_bytes)
    return Launch(round_rows, args, rows * out.groups, 64)
