"""Multiply by Q4_1: 32 weights, codes of 4 bits.  w = d q + m

Layout: d, m, 16 bytes of codes (nibbles.py).
"""

from ..scales import Codes
from ..small_blocks import Halves, SmallBlock
from ..traced import Number
from .nibbles import nibbles

BYTES = 20


def codes(first: Number, second: Number) -> Codes:
    """Unpack the codes of two blocks."""
    return nibbles(first + 4, second + 4)


BLOCK = SmallBlock(BYTES, codes, Halves(BYTES), Halves(BYTES, 2))
