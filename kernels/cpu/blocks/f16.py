"""Multiply by F16, float16."""

from ..lanes import from_half
from ..simd import i16x16
from .dense import Dense

BLOCK = Dense(i16x16, from_half, 2)
