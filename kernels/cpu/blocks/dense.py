"""Multiply by float16, bfloat16 and float32 weights: rows of x stay float32."""

from collections.abc import Callable
from typing import Any

from ..lanes import fma, from_bfloat16, from_half
from ..simd import f32x16, i16x16, load, load_some
from ..sums import arg, product
from ..traced import Cell, Number, Value, loop, traced

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


def same(x: Value) -> Value:
    """Return x: it is float32 already."""
    return x


@traced
def f16(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of a float16 matrix by a few rows of x."""
    dense_rows(i16x16, from_half, 2, args, first, end)


@traced
def bf16(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of a bfloat16 matrix by a few rows of x."""
    dense_rows(i16x16, from_bfloat16, 2, args, first, end)


@traced
def f32(args: Number, first: Number, end: Number) -> None:
    """Multiply rows of a float32 matrix by a few rows of x."""
    dense_rows(f32x16, same, 4, args, first, end)
