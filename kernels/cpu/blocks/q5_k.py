"""Multiply by Q5_K: 256 weights, 8 scales and 8 minima of 6 bits, codes of 5 bits.  w = d s q - m t

Layout: d, m, 12 bytes of scales and minima, 32 bytes of fifth bits, 128 bytes of nibbles; each 32 bytes of nibbles have
64 weights, low halves first, and each bit of the 32 bytes 32 weights. The fifth bits are moved to bit 4 of their bytes.
"""

from ..decode.fields import half, six_bits, whole
from ..lanes import convert_unsigned, shift_down, shift_up, shuffle, vector
from ..simd import i16x16, i16x32
from ..sums import whole_scales
from ..traced import Number, Value, traced
from .two_bits import scaled, twice

BYTES = 176
NIBBLES = vector(i16x32, *[0] * 16, *[4] * 16)
UP = [vector(i16x32, *[i] * 16, *[i - 1] * 16) for i in (4, 2)]
DOWN = [vector(i16x32, *[i] * 16, *[i + 1] * 16) for i in (0, 2)]
SPREAD = [shuffle(*[i] * 16, *[i + 1] * 16) for i in (0, 2, 4, 6)]
MINIMA = shuffle(*(8 + i // 2 for i in range(16)))


def unpack(at: Number) -> tuple[list[Value], Value]:
    """Unpack a block into 8 vectors of codes times scales, and d."""
    s, top, words = convert_unsigned(i16x16, six_bits(at + 4)), twice(at + 16), list[Value]()
    fifths = [shift_up(top, shifts()) for shifts in UP] + [shift_down(top, shifts()) for shifts in DOWN]
    for i, (fifth, spread) in enumerate(zip(fifths, SPREAD, strict=True)):
        nibbles = shift_down(twice(at + 48 + 32 * i), NIBBLES())
        words += scaled(nibbles & 0x0F0F | fifth & 0x1010, spread(s))
    return words, half(at)


def minima(at: Number) -> Value:
    """Return -m t for each 16 weights."""
    return whole(MINIMA(six_bits(at + 4))) * -half(at + 2)


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    whole_scales(unpack, minima, BYTES, args, first, end)
