"""Multiply by F32, float32."""

from ..rows import READ
from .dense import Dense

BLOCK = Dense(*READ["F32"], 4)
