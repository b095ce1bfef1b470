"""Multiply by Q5_K: 256 weights, 8 scales and 8 minima of 6 bits, codes of 5 bits.  w = d s q - m t

Layout: d, m, 12 bytes of scales and minima, 32 bytes of fifth bits, 128 bytes of nibbles; each 32 bytes of nibbles have
64 weights, low halves first, and each bit of the 32 bytes 32 weights. The fifth bits are moved to bit 4 of their bytes.
"""

from ..big_blocks import BigBlock
from ..decode.fields import half, six_bits, whole
from ..lanes import convert_unsigned, lower, shift_down, shift_up, shuffle, vector
from ..simd import i16x8, i16x32
from ..traced import Number, Value
from .two_bits import twice

BYTES = 176
NIBBLES = vector(i16x32, *[0] * 16, *[4] * 16)
UP = [vector(i16x32, *[i] * 16, *[i - 1] * 16) for i in (4, 2)]
DOWN = [vector(i16x32, *[i] * 16, *[i + 1] * 16) for i in (0, 2)]
MINIMA = shuffle(*(8 + i // 2 for i in range(16)))


def codes(at: Number) -> list[Value]:
    """Unpack the codes of a block."""
    top, found = twice(at + 16), []
    fifths = [shift_up(top, shifts()) for shifts in UP] + [shift_down(top, shifts()) for shifts in DOWN]
    for i, fifth in enumerate(fifths):
        nibbles = shift_down(twice(at + 48 + 32 * i), NIBBLES())
        found.append(nibbles & 0x0F0F | fifth & 0x1010)
    return found


def scales(at: Number) -> Value:
    """Unpack the scales of a block."""
    return convert_unsigned(i16x8, lower(six_bits(at + 4)))


def factor(at: Number) -> Value:
    """Return d."""
    return half(at)


def minima(at: Number) -> Value:
    """Return -m t for each 16 weights."""
    return whole(MINIMA(six_bits(at + 4))) * -half(at + 2)


BLOCK = BigBlock(BYTES, codes, scales, factor, minima)
