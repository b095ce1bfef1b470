"""Multiply by Q5_1: 32 weights, codes of 5 bits.  w = d q + m

Layout: d, m, 32 fifth bits, 16 bytes of nibbles (nibbles.py).
"""

from ..scales import Codes
from ..small_blocks import Halves, SmallBlock
from ..traced import Number
from .nibbles import nibbles, with_fifths

BYTES = 24


def codes(first: Number, second: Number) -> Codes:
    """Unpack the codes of two blocks."""
    return with_fifths(nibbles(first + 8, second + 8), first + 4, second + 4)


BLOCK = SmallBlock(BYTES, codes, Halves(BYTES), Halves(BYTES, 2))
