"""Multiply by Q8_0: 32 weights, codes of 8 bits.  w = d q

Layout: d, 32 codes. A vector takes the codes of two blocks.
"""

from ..lanes import from_half, join, shuffle
from ..scales import Codes
from ..simd import i8x32, i16x32, load
from ..small_blocks import Halves, SmallBlock
from ..traced import Number, Value
from .nibbles import words

BYTES = 34
FACTORS = shuffle(*[0] * 8, *[BYTES // 2] * 8)


class PairScales(Halves):
    """Scales that are read with the codes beside them: two blocks are little more than a vector."""

    def __init__(self) -> None:
        super().__init__(BYTES)

    def eight(self, at: Number) -> list[Value]:  # type: ignore[override]
        """Spread the scales of 8 blocks over their weights."""
        return [from_half(FACTORS(load(i16x32, at + 2 * BYTES * i))) for i in range(4)]


def codes(first: Number, second: Number) -> Codes:
    """Unpack the codes of two blocks."""
    return words(join(load(i8x32, first + 2), load(i8x32, second + 2)))


BLOCK = SmallBlock(BYTES, codes, PairScales())
