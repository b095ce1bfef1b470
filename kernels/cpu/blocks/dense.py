"""Multiply by weights that are numbers, not codes: rows of x stay float32. What F16, BF16 and F32 share."""

from collections.abc import Callable
from typing import Any

from ..lanes import fma
from ..simd import f32x16, load, load_some
from ..sums import arg, product
from ..traced import Cell, Number, Value, loop

STEP = 64


def dense_rows(
    kind: Any, widened: Callable[[Value], Value], size: int, args: Number, first: Number, end: Number
) -> None:
    """Do rows of a matrix of weights of `size` bytes, loaded as vectors of type `kind`; `widened` makes float32."""
    K = arg(args, 2)
    whole = K // STEP

    def weights(row: Number, g: Number, i: int) -> Any:
        return [widened(load(kind, row + size * (STEP * g + i))) for i in range(0, STEP, 16)]

    def add(weights: Any, x: Number, g: Number, lanes: Value) -> Value:
        for i, w in enumerate(weights):
            lanes = fma(w, load(f32x16, x + 4 * (STEP * g + 16 * i)), lanes)
        return lanes

    def rest(row: Number, x: Number, lanes: Value) -> Value:
        total = Cell(lanes)
        for k in loop(whole * STEP, K, 16):
            total.value = fma(
                widened(load_some(kind, K - k, row + size * k)), load_some(f32x16, K - k, x + 4 * k), total.value
            )
        return total.value

    product(args, first, end, whole, STEP * size, weights, add, rest)
