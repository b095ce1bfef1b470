"""Multiply by BF16, bfloat16."""

from ..rows import READ
from .dense import Dense

BLOCK = Dense(*READ["BF16"], 2)
