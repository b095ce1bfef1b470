"""Multiply by BF16, bfloat16."""

from ..lanes import from_bfloat16
from ..simd import i16x16
from .dense import Dense

BLOCK = Dense(i16x16, from_bfloat16, 2)
