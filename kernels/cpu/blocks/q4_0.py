"""Multiply by Q4_0: 32 weights, codes of 4 bits.  w = d (q - 8)

Layout: d, 16 bytes of codes (nibbles.py). 8 times the scale is the minimum of a block.
"""

from ..scales import Codes
from ..small_blocks import Halves, SmallBlock
from ..traced import Number
from .nibbles import nibbles

BYTES = 18


def codes(first: Number, second: Number) -> Codes:
    """Unpack the codes of two blocks."""
    return nibbles(first + 2, second + 2)


BLOCK = SmallBlock(BYTES, codes, Halves(BYTES), zero=8)
