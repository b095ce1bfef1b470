"""Multiply by Q6_K: 256 weights, 16 scales of 8 bits, codes of 6 bits.  w = d s (q - 32)

Layout: 128 bytes of the codes' low halves, 64 bytes of their upper pairs of bits, 16 scales, d. Each 64 bytes of halves
have 128 weights, low halves first; 32 bytes of pairs the same 128, lowest pairs first. Codes without sign times a scale
and zero are words of codes times scales; -32 d s is what is to be added for each 16 weights.
"""

from ..big_blocks import BigBlock
from ..decode.fields import half, signed
from ..lanes import bits, convert, join, shift_down, shift_up, vector
from ..simd import i8x16, i8x32, i8x64, i16x16, i16x32, load
from ..traced import Number, Value

BYTES = 210
UP = vector(i16x32, *[4] * 16, *[2] * 16)
DOWN = vector(i16x32, *[0] * 16, *[2] * 16)


def codes(at: Number) -> list[Value]:
    """Unpack the codes of a block, 0 to 63, 4 vectors of bytes in order."""
    made = []
    for i in range(2):
        low, pairs = bits(i16x32, load(i8x64, at + 64 * i)), load(i8x32, at + 128 + 32 * i)
        high = bits(i16x32, join(pairs, pairs))
        made.append(low & 0x0F0F | shift_up(high, UP()) & 0x3030)
        made.append(shift_down(low, 4) & 0x0F0F | shift_down(high, DOWN()) & 0x3030)
    return [bits(i8x64, words) for words in made]


def scales(at: Number) -> Value:
    """Return the scales of a block."""
    return convert(i16x16, load(i8x16, at + 192))


def factor(at: Number) -> Value:
    """Return d."""
    return half(at + 208)


def minima(at: Number) -> Value:
    """Return -32 d s for each 16 weights."""
    return signed(load(i8x16, at + 192)) * (factor(at) * -32.0)


BLOCK = BigBlock(BYTES, codes, scales, factor, minima, parts=2)
