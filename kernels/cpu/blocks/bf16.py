"""Multiply by BF16, bfloat16."""

from ..lanes import from_bfloat16
from ..simd import i16x16
from ..traced import Number, traced
from .dense import dense_rows


@traced
def matvec(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of the matrix by a few rows of x."""
    dense_rows(i16x16, from_bfloat16, 2, args, first, end)
