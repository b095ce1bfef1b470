"""Multiply rows of a matrix with a block for 32 weights: 8 blocks are a group, and what is behind them goes by pairs.

A type says (`SmallBlock`) how two blocks become 64 codes, and where their scales and minima stand. A row of any
multiple of 32 weights is read as it lies, and nothing behind it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .activations import CODES, GROUP, SUMS
from .dots import dot16
from .lanes import convert, fma, from_half, half_number, join, shuffle
from .llvm import Kind
from .scales import Codes, split
from .simd import f32, f32x4, f32x8, f32x16, i16, i16x32, i32x16, load, splat
from .strided import strided
from .sums import Work, float_scales
from .traced import Cell, Number, Value, least, loop, pick

f32x2 = Kind("f32", 2)
TWICE = shuffle(*(i // 2 for i in range(16)))


class Numbers(Protocol):
    """A number that every block has."""

    def one(self, at: Number) -> Value:
        """Return that of a block at an address, float32."""

    def eight(self, at: Number) -> Value | list[Value]:
        """Return those of 8 blocks, or spread over 256 weights, each lane for 4: 4 vectors."""


class Halves:
    """A float16, `offset` bytes behind the beginning of a block of `stride` bytes."""

    def __init__(self, stride: int, offset: int = 0):
        self._offset, self._read = offset, strided("i16", stride, 8 * stride - offset)

    def one(self, at: Number) -> Value:
        found: Value = half_number(load(i16, at + self._offset))
        return found

    def eight(self, at: Number) -> Value:
        found: Value = from_half(self._read(at + self._offset))
        return found


@dataclass(frozen=True, slots=True)
class SmallBlock:
    """A type whose weights are scale * code + minimum, or scale * (code - zero)."""

    bytes: int
    codes: Callable[[Number, Number], Codes]
    """64 codes, from the addresses of two blocks."""
    scale: Numbers
    minimum: Numbers | None = None
    zero: int = 0

    def minima(self, at: Number) -> Value:
        """Return for each 16 weights of 8 blocks what is to be added."""
        found: Any = self.minimum.eight(at) if self.minimum else self.scale.eight(at)
        return TWICE(found) if self.minimum else TWICE(found) * -self.zero

    def one_minimum(self, at: Number) -> Value:
        """Return what is to be added for the weights of a block."""
        return self.minimum.one(at) if self.minimum else self.scale.one(at) * -self.zero

    @property
    def has_minima(self) -> bool:
        return self.minimum is not None or self.zero != 0

    def products(self, work: Work) -> None:
        """Do rows of a matrix."""
        K = work["K"]
        whole, count, step = K // GROUP, K % GROUP // 32, 8 * self.bytes

        def codes(at: Number) -> list[Codes]:
            return [self.codes(at + i * self.bytes, at + (i + 1) * self.bytes) for i in range(0, 8, 2)]

        def rest(row: Number, x: Number, lanes: Value) -> Value:
            """Add what is behind the groups, two blocks at a time. A last one alone goes with itself, where x is 0."""
            groups = (K + GROUP - 1) // GROUP
            acc, beside, zero = Cell(splat(f32x16, 0.0)), Cell(splat(f32x4, 0.0)), splat(i32x16, 0)
            for j in loop(0, (count + 1) // 2):
                a = row + whole * step + 2 * self.bytes * j
                b = pick(2 * j + 1 < count, a + self.bytes, a)
                (even, odd), at = split(self.codes(a, b)), x + whole * CODES + 128 * j
                dots = convert(f32x16, dot16(dot16(zero, even, load(i16x32, at)), odd, load(i16x32, at + 64)))
                scales = join(splat(f32x8, self.scale.one(a)), splat(f32x8, self.scale.one(b)))
                acc.value = fma(dots, scales, acc.value)
                if self.has_minima:
                    minima = join(splat(f32x2, self.one_minimum(a)), splat(f32x2, self.one_minimum(b)))
                    sums = load(f32x4, x + groups * CODES + whole * SUMS + 16 * j)
                    beside.value = fma(minima, sums, beside.value)
            s = load(f32, x + groups * (CODES + SUMS) + 4 * least(whole, groups - 1))
            lanes = fma(acc.value, splat(f32x16, s), lanes)
            none = splat(f32x4, 0.0)
            return lanes + join(join(beside.value, none), join(none, none)) if self.has_minima else lanes

        minima = self.minima if self.has_minima else None
        float_scales(codes, self.scale.eight, minima, step, work, rest)
