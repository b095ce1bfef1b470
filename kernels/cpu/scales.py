"""Spread the scales of 256 weights over them, one for 32 weights or for 16, and multiply codes by whole ones."""

from .dots import pairs8
from .lanes import bits, join, shift_down, shuffle
from .processor import SET
from .simd import f32, f32x4, f32x8, i8x64, i16x32, load, splat
from .traced import Number, Value

Codes = Value | tuple[Value, Value]
"""64 codes: bytes without sign, in order; or int16, the 32 at even places and the 32 at odd ones."""
WORDS = {n: [shuffle(*((64 * j + 2 * i) * n // 256 for i in range(32))) for j in range(4)] for n in (8, 16)}
"""Of n scales, those of 64 weights, for the 32 at even places and as well for the 32 at odd ones."""
FLOATS = {n: [shuffle(*((64 * j + 4 * i) * n // 256 for i in range(16))) for j in range(4)] for n in (8, 16)}
"""Of n scales, those of 64 weights, a lane for each 4."""


KEPT = SET != "avx512"
"""Whether scales are stored, and each is loaded into all lanes of a vector: without vectors of 64 bytes that costs less
than to move lanes."""


def spread(scales: Value) -> list[Value]:
    """Spread 8 or 16 float32 over 256 weights, each lane for 4: 4 vectors."""
    return [pick(scales) for pick in FLOATS[scales.lanes]]


def spread_at(address: Number, n: int) -> list[Value]:
    """Spread n float32 that are stored at an address."""
    kind = f32x8 if n == 8 else f32x4
    parts = [splat(kind, load(f32, address + 4 * i)) for i in range(n)]
    while len(parts) > 4:
        parts = [join(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts


def spread_words(scales: Value) -> list[Value]:
    """Spread 8 or 16 int16 over 256 weights: for each 64 of them a vector, for the 32 at even places as at odd ones."""
    return [pick(scales) for pick in WORDS[scales.lanes]]


def split(codes: Codes) -> tuple[Value, Value]:
    """Widen 64 codes without sign to int16: those at even places, and those at odd ones."""
    if isinstance(codes, tuple):
        return codes
    pairs = bits(i16x32, codes)
    return pairs & 255, shift_down(pairs, 8)


def scaled(codes: Codes, scales: Value) -> tuple[Value, Value]:
    """Multiply 64 codes by their scales, int16 of 8 bits and a sign: the even products and the odd ones."""
    if isinstance(codes, tuple):
        return codes[0] * scales, codes[1] * scales
    q = bits(i8x64, codes)
    return pairs8(q, bits(i8x64, scales & 255)), pairs8(q, bits(i8x64, scales << 8))
