"""Multiply by MXFP4: 32 weights, codes of 4 bits for 16 values v, the scale a power of 2.  w = 2^(e - 128) 2v

Layout: e, 16 bytes of codes (nibbles.py). The scales of the two lowest e are subnormal.
"""

from ..decode.mxfp4 import scale
from ..lanes import bits, choose, convert_unsigned, less, shift_up, vector
from ..scales import Codes
from ..simd import f32x8, i8x16, i32x8, splat
from ..small_blocks import SmallBlock
from ..strided import strided
from ..traced import Number, Value
from .nibbles import values

BYTES = 17
TWICE_E2M1 = vector(i8x16, 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


class Powers:
    """2^(e - 128) of the exponents of blocks."""

    read = staticmethod(strided("i8", BYTES, 8 * BYTES))

    def one(self, at: Number) -> Value:
        """Return that of a block."""
        return scale(at)

    def eight(self, at: Number) -> Value:
        """Return those of 8 blocks."""
        e = convert_unsigned(i32x8, self.read(at))
        smallest = shift_up(splat(i32x8, 0x00200000), e & 1)
        found: Value = bits(f32x8, choose(less(e, splat(i32x8, 2)), smallest, (e - 1) << 23))
        return found


def codes(first: Number, second: Number) -> Codes:
    """Unpack the codes of two blocks."""
    return values(TWICE_E2M1(), first + 1, second + 1)


BLOCK = SmallBlock(BYTES, codes, Powers())
