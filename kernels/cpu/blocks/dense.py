"""Multiply by weights that are numbers, not codes: rows of x stay float32. What F16, BF16 and F32 share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..lanes import fma
from ..llvm import Kind
from ..simd import f32x16, load, load_some
from ..sums import Work, product
from ..traced import Cell, Number, Value, loop

STEP = 64


@dataclass(frozen=True, slots=True)
class Dense:
    """A type of numbers: the vectors they are loaded as, a function that makes these float32, and bytes of a number."""

    kind: Kind
    widened: Callable[[Value], Value]
    size: int

    def products(self, work: Work) -> None:
        """Do rows of a matrix."""
        kind, widened, size, K = self.kind, self.widened, self.size, work["K"]
        whole = K // STEP

        def weights(row: Number, g: Number, i: int) -> Any:
            return [widened(load(kind, row + size * (STEP * g + i))) for i in range(0, STEP, 16)]

        def add(weights: list[Any], x: Number, g: Number, lanes: list[Value]) -> list[Value]:
            numbers = [load(f32x16, x + 4 * (STEP * g + i)) for i in range(0, STEP, 16)]
            found = [w[0] * numbers[0] for w in weights]
            for i, y in list(enumerate(numbers))[1:]:
                found = [fma(w[i], y, acc) for w, acc in zip(weights, found, strict=True)]
            return [old + new for old, new in zip(lanes, found, strict=True)]  # no group waits for the one before

        def rest(row: Number, x: Number, lanes: Value) -> Value:
            total = Cell(lanes)
            for k in loop(whole * STEP, K, 16):
                total.value = fma(
                    widened(load_some(kind, K - k, row + size * k)), load_some(f32x16, K - k, x + 4 * k), total.value
                )
            return total.value

        product(work, whole, STEP * size, weights, add, rest)
