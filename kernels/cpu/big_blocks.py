"""Multiply rows of a matrix whose blocks are groups: 256 weights, whole scales for 16 or 32 of them, and a factor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .activations import CODES, GROUP, SUMS
from .dots import dot16
from .lanes import convert, fma
from .processor import SET
from .scales import Codes, scaled, spread_words
from .simd import f32, f32x8, f32x16, i32x16, load, splat
from .sums import Work, add_minima, each_64, float_scales, product
from .traced import Number, Value

SCALED = SET == "avx512"
"""Whether whole scales multiply codes before these meet x, in 16 bits, so that 256 products are added as integers.
There are instructions enough for that where vectors have 64 bytes, and other rows of x share the work; where they have
half, whole scales become float32 as well: fewer instructions for one row."""


@dataclass(frozen=True, slots=True)
class BigBlock:
    """A type whose weights are factor * scale * code + minimum. Its functions are given the address of a block."""

    bytes: int
    codes: Callable[[Number], Sequence[Codes]]
    """4 times 64 codes."""
    scales: Callable[[Number], Value]
    """8 or 16 int16. Codes times scales have at most 12 bits and a sign."""
    factor: Callable[[Number], Value]
    """A float32."""
    minima: Callable[[Number], Value] | None = None
    """What is to be added for each 16 weights: 16 float32."""
    parts: int = 1
    """2 where codes times scales have 13 bits: their products are added in two parts."""

    def products(self, work: Work) -> None:
        """Do rows of a matrix."""
        if SCALED:
            self._scaled(work)
        else:
            float_scales(self.codes, self._float_scales, self.minima, self.bytes, work)

    def _float_scales(self, at: Number) -> Value:
        s = self.scales(at)
        found: Value = convert(f32x16 if s.lanes == 16 else f32x8, s) * self.factor(at)
        return found

    def _scaled(self, work: Work) -> None:
        groups = work["K"] // GROUP

        def block(row: Number, g: Number, i: int) -> Any:
            at = row + g * self.bytes
            pairs = [scaled(q, s) for q, s in zip(self.codes(at), spread_words(self.scales(at)), strict=True)]
            return pairs, self.factor(at), self.minima and self.minima(at)

        def add(weights: list[Any], x: Number, g: Number, lanes: list[Value]) -> list[Value]:
            acc = [[splat(i32x16, 0)] * 2 for _ in weights]  # two sums: neither waits for the other

            def use(i: int, j: int, even: Value, odd: Value, x_even: Value, x_odd: Value) -> None:
                acc[i][j // 2] = dot16(dot16(acc[i][j // 2], even, x_even), odd, x_odd)

            each_64(x + g * CODES, weights, use)
            found, s = [], splat(f32x16, load(f32, x + groups * (CODES + SUMS) + 4 * g))
            for (a, b), (_, d, _), old in zip(acc, weights, lanes, strict=True):
                dots = convert(f32x16, a) + convert(f32x16, b) if self.parts == 2 else convert(f32x16, a + b)
                found.append(fma(dots * s, splat(f32x16, d), old))
            return add_minima(weights, x + groups * CODES + g * SUMS, found)

        product(work, groups, self.bytes, block, add)
