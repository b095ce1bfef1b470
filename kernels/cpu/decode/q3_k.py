"""Q3_K: 32 bytes of third bits, 64 bytes of 2-bit fields as Q2_K, 12 bytes of scales, d.

w = d (s - 32) (q - 4).  Bit j of the 32 bytes is the top of q of the weights 32 j to 32 j + 31. 16 scales of 6 bits:
low nibbles in the nibbles of bytes 0..7, high pairs in the fields of bytes 8..11.
"""

from ..lanes import bits, join, lane, shift_down, vector
from ..llvm import Kind
from ..simd import i8x16, i32, i32x4, load, splat
from .fields import half, high, low, pair, whole

i8x8, DOWN = Kind("i8", 8), vector(i32x4, 0, 2, 4, 6)


def scales(at):
    """Unpack 16 scales."""
    nibbles, pairs = load(i8x8, at), shift_down(splat(i32x4, load(i32, at + 8)), DOWN()) & 0x03030303
    return join(low(nibbles), high(nibbles)) | bits(i8x16, pairs << 4)


def block(at, put, out):
    f = half(at + 108) * (whole(scales(at + 96)) - 32)
    for h in range(4):
        q, first = load(i8x16, at + 32 + 16 * h), 8 * (h // 2) + h % 2
        tops = shift_down(load(i8x16, at + 16 * (h % 2)), 4 * (h // 2))
        for j in range(4):
            i, top = first + 2 * j, shift_down(tops, j) & 1
            put(out, 16 * i, pair(q, 2 * j) | top << 2, 4, lane(f, i), 0.0)
