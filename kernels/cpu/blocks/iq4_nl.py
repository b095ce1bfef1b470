"""Multiply by IQ4_NL: 32 weights, codes of 4 bits for 16 values v.  w = d v

Layout: d, 16 bytes of codes (nibbles.py).
"""

from ..scales import Codes
from ..small_blocks import Halves, SmallBlock
from ..traced import Number
from .nibbles import IQ4, values

BYTES = 18


def codes(first: Number, second: Number) -> Codes:
    """Unpack the codes of two blocks."""
    return values(IQ4(), first + 2, second + 2)


BLOCK = SmallBlock(BYTES, codes, Halves(BYTES))
