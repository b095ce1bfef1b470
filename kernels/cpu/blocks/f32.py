"""Multiply by F32, float32."""

from ..simd import f32x16
from ..traced import Value
from .dense import Dense


def same(x: Value) -> Value:
    """Return x: it is float32 already."""
    return x


BLOCK = Dense(f32x16, same, 4)
