"""Read the fields of blocks: float16 scales, nibbles, the packed scales of the K types.   d, m float16; s, t codes."""

from collections.abc import Callable
from typing import Any

from numba import int16, njit

from ..functions import inlined
from ..lanes import bits, choose, convert, convert_unsigned, half_number, join, shift_down, shuffle, vector
from ..simd import Vec, f32x8, f32x16, i8x16, i32x4, load, splat

SIGN = -128
"""Turned round in a byte with sign, it leaves one without, 128 larger."""
i1x16 = Vec("i1", 16)
A_BOTH_C_BOTH, A_A_C_C = shuffle(0, 2, 1, 2), shuffle(0, 0, 1, 1)
DOWN, MASK = vector(i32x4, 0, 0, 0, 4), vector(i32x4, 0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F)
TOP = vector(i32x4, 0, 0x30303030, 0, 0x30303030)


def generic(function: Callable[..., Any]) -> Any:
    """Make a function that may be given functions; it is copied into its callers, and so compiled with these."""
    return njit(inline="always", error_model="numpy")(function)


@inlined
def half(at):
    """Read a float16, as float32."""
    return half_number(load(int16, at))


@inlined
def low(q):
    """Return the low nibbles of bytes."""
    return q & 15


@inlined
def high(q):
    """Return the high nibbles of bytes."""
    return shift_down(q, 4)


@inlined
def pair(q, shift):
    """Return fields of two bits of bytes, those from bit `shift` on."""
    return shift_down(q, shift) & 3


@inlined
def fifth(word, first):
    """Return 16 of 32 bits, those from bit `first` on, as bytes of 0 or 16."""
    return choose(bits(i1x16, int16(word >> first)), splat(i8x16, 16), splat(i8x16, 0))


@inlined
def whole(q):
    """Convert 16 bytes without sign to float32."""
    return convert_unsigned(f32x16, q)


@inlined
def signed(q):
    """Convert 16 bytes with sign to float32."""
    return convert(f32x16, q)


@inlined
def six_bits(at):
    """Unpack 8 scales and 8 minima of 6 bits from 12 bytes: words a, c, both.  -> (16) bytes, scales first

    The first four of each are the low 6 bits of a and c; of the other four the low nibbles are in `both`, those of the
    minima in its high nibbles, and the high pairs in the top of a and c."""
    words = load(i32x4, at)
    lower = shift_down(A_BOTH_C_BOTH(words), DOWN()) & MASK()
    return bits(i8x16, lower | shift_down(A_A_C_C(words), 2) & TOP())


@inlined
def factors(at, scales):
    """Unpack 8 scales and 8 minima, and multiply by d and m, which are at `at`.  -> (16) float32, scales first"""
    return join(splat(f32x8, half(at)), splat(f32x8, half(at + 2))) * whole(six_bits(scales))
