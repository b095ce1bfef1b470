"""Round rows of a matrix of numbers to codes of 12 bits and a sign, as `panels` wants them: types F16, BF16, F32.

32 weights of a row share a scale d = max |w| / 4095: the error is 1 / 8190 of the largest, 1.5e-4 of a normal row's
size, where bfloat16 costs 1.7e-3. Beside x's 14 bits and a sign (gemm.py), 32 products stay within 32 bits. A scale is
NaN where a weight is infinite or none.
"""

from llava_ref.gguf.types import TYPES

from .activations import SMALLEST, WHOLE
from .lanes import bits, choose, convert, fma, larger, less, lower, shift_down, upper
from .rows import READ
from .simd import f32, f32x8, f32x16, i8, i8x16, i16x8, i16x16, i32x4, i32x8, i32x16, load, splat, store
from .tiles import turned
from .traced import Number, Value, loop

LIMIT = 4095.0
SIZE, INFINITE = 0x7FFFFFFF, 0x7F800000
"""The bits of a float32 but for its sign, and those of infinity: of what is no number they are more."""
GROUPS = 8  # that are done together


def sixteen(kind: str, at: Number, i: int) -> Value:
    """Load weights 16 i to 16 i + 15, as they are."""
    return load(READ[kind][0], at + 16 * i * TYPES[kind].bytes)


def large(kind: str, at: Number, group: int) -> Value:
    """Return the bits of some weights of a group, without signs: the largest is among them.  -> i32 (4)"""
    a, b = (sixteen(kind, at, 2 * group + i) for i in range(2))
    if kind == "F32":
        size = larger(bits(i32x16, a) & SIZE, bits(i32x16, b) & SIZE)
        size = larger(lower(size), upper(size))
    else:
        size = larger(a & 0x7FFF, b & 0x7FFF)
    return bits(i32x4, larger(lower(size), upper(size)))


def largest(kind: str, found: list[Value]) -> Value:
    """Return the largest of each group, from what `large` found.  -> float32 (8)"""
    a, b, c, d = (bits(i32x8 if kind == "F32" else i16x16, part) for part in turned(found))
    size = larger(larger(a, b), larger(c, d))
    if kind == "F32":
        return bits(f32x8, size)
    pairs = bits(i32x8, size)
    return READ[kind][1](convert(i16x8, larger(pairs & 0xFFFF, shift_down(pairs, 16))))


def block(kind: str, at: Number, codes: Number, scales: Number) -> None:
    """Store the codes, 16 bits each, and the scales of 8 groups of a row, and 64 bytes further their inverses."""
    size = largest(kind, [large(kind, at, group) for group in range(GROUPS)])
    sound = less(bits(i32x8, size), splat(i32x8, INFINITE))
    inverse = choose(less(splat(f32x8, SMALLEST), size) & sound, LIMIT / size, splat(f32x8, 0.0))
    store(choose(sound, size * (1 / LIMIT), splat(f32x8, float("nan"))), scales)
    store(inverse, scales + 64)
    for group in range(GROUPS):
        for i in (2 * group, 2 * group + 1):
            x = READ[kind][1](sixteen(kind, at, i))
            rounded = fma(x, splat(f32x16, load(f32, scales + 64 + 4 * group)), splat(f32x16, WHOLE))
            store(convert(i16x16, bits(i32x16, rounded)), codes + 32 * i)


def filled_up(at: Number, size: Number, room: Number, whole: int) -> None:
    """Copy bytes to a place, and zeros behind them until `whole` bytes are there."""
    for to in range(0, whole, 64):
        store(splat(i32x16, 0), room + to)
    sixteens = size - size % 16
    for i in loop(0, sixteens, 16):
        store(load(i8x16, at + i), room + i)
    for i in loop(sixteens, size):
        store(load(i8, at + i), room + i)
