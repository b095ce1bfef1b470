"""Multiply by F16, float16."""

from ..rows import READ
from .dense import Dense

BLOCK = Dense(*READ["F16"], 2)
