"""Multiply by Q5_0: 32 weights, codes of 5 bits.  w = d (q - 16)

Layout: d, 32 fifth bits, 16 bytes of nibbles (nibbles.py). 16 times the scale is the minimum of a block.
"""

from ..scales import Codes
from ..small_blocks import Halves, SmallBlock
from ..traced import Number
from .nibbles import nibbles, with_fifths

BYTES = 22


def codes(first: Number, second: Number) -> Codes:
    """Unpack the codes of two blocks."""
    return with_fifths(nibbles(first + 6, second + 6), first + 2, second + 2)


BLOCK = SmallBlock(BYTES, codes, Halves(BYTES), zero=16)
